"""`unmask export` and `unmask import`: caches as files, and trainers' files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from unmask.cli.connect import connected, say, stderr, stdout
from unmask.cli.options import Objective, Teachers, TopK, Verifier
from unmask.cli.tables import key_values
from unmask.client import Client
from unmask.requests.cache import EXPORT_KINDS, ExportKindName
from unmask.sharing import TrainerImport, export_to, import_from, import_trainer

Range = tuple[float, float]


@connected
def export(
    client: Client,
    folder: Annotated[
        Path, typer.Argument(help="New, or that of the same export, which is continued.")
    ],
    format: Annotated[
        Literal["jsonl", "parquet"], typer.Option(help="parquet needs pyarrow.")
    ] = "jsonl",
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="rollouts, trajectories, distributions or estimates; may be given several times. "
            "All but estimates, if not given."
        ),
    ] = None,
    policy: Annotated[str, typer.Option(help="Only of this student.")] = "",
    question: Annotated[
        list[str] | None,
        typer.Option(help="Only of this question; may be given several times."),
    ] = None,
    teacher: Teachers = None,
    verifier: Verifier = "",
    objective: Objective = "",
    top_k: TopK = 0,
) -> None:
    """Write what is stored to a folder of tables, for another cache or for pandas and DuckDB.

    --teacher (its probabilities are told), --verifier, --objective and --top-k are for estimates.
    """
    kinds: list[ExportKindName] = []
    for name in only or ():
        if name not in EXPORT_KINDS:
            raise ValueError(f"--only: {name!r} is none of {', '.join(EXPORT_KINDS)}")
        kinds.append(name)
    with stderr().status("exporting") as status:
        rows = export_to(
            client,
            folder,
            kinds,
            format=format,
            policy=policy,
            questions=question or (),
            teachers=teacher or (),
            verifier=verifier,
            objective=objective,
            top_k=top_k,
            on_progress=lambda rows: status.update(_told(rows)),
        )
    stdout().print(key_values([(name, f"{count:,}") for name, count in rows.items()]))
    say(f"exported to {folder}")


@connected
def import_(
    client: Client,
    path: Annotated[
        Path, typer.Argument(help="A folder that `unmask export` wrote; or, with --from, a file.")
    ],
    trainer: Annotated[
        Literal["verl", "slime", "trl"] | None,
        typer.Option("--from", help="A trainer's rollouts: JSONL, JSON or Parquet."),
    ] = None,
    policy: Annotated[str, typer.Option(help="With --from: the student that made them.")] = "",
    temperature: Annotated[
        float | None, typer.Option(help="With --from: how the trainer sampled.")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="With --from: the trainer's token limit.")
    ] = None,
    top_p: Annotated[float, typer.Option(help="With --from: the trainer's.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="With --from: the trainer's; 0: no cut.")] = 0,
    run: Annotated[
        str,
        typer.Option(
            help="With --from: names the file's generations, so that a longer file of the same "
            "name adds only what is new. If not given, the file's bytes do."
        ),
    ] = "",
    question: Annotated[
        list[str] | None,
        typer.Option(help="With --from: the only questions that prompts may be of."),
    ] = None,
    rewards: Annotated[
        str,
        typer.Option(
            metavar="VERIFIER",
            help="With --from: keep the file's rewards under this verifier of kind external.",
        ),
    ] = "",
    reward: Annotated[
        str, typer.Option(metavar="COLUMN", help="With --rewards: where they are.")
    ] = "",
    reward_range: Annotated[
        Range, typer.Option(help="With --rewards: what is to become 0, and what 1.")
    ] = (0.0, 1.0),
    allow_text: Annotated[
        bool, typer.Option("--allow-text", help="With --from: tokenise generations anew.")
    ] = False,
    tolerance: Annotated[
        float | None,
        typer.Option(help="With --from: nats by which log-probabilities may differ; 0.05."),
    ] = None,
    validate_only: Annotated[
        bool, typer.Option("--validate-only", help="With --from: keep nothing.")
    ] = False,
) -> None:
    """Merge another cache's export, or take in a trainer's rollouts. Nothing counts twice."""
    if trainer is None:
        _merge(client, path)
        return
    if not policy or temperature is None or max_new_tokens is None:
        raise ValueError(
            "--from: say who made them and how: --policy, --temperature and --max-new-tokens "
            "(--top-p, --top-k)"
        )
    with stderr().status("importing") as status:
        done = import_trainer(
            client,
            trainer,
            path,
            policy=policy,
            temperature=temperature,
            max_new_tokens=max_new_tokens,
            top_p=top_p,
            top_k=top_k,
            run=run,
            questions=question or (),
            verifier=rewards,
            reward=reward,
            reward_range=reward_range,
            allow_text=allow_text,
            tolerance=tolerance,
            validate_only=validate_only,
            on_progress=lambda done: status.update(f"{done.added + done.known:,} rollouts"),
        )
    _tell(done, validate_only)


def _merge(client: Client, folder: Path) -> None:
    with stderr().status("importing") as status:
        done = import_from(client, folder, lambda done: status.update(_told(done.counts)))
    stdout().print(
        key_values(
            [(name.replace("_", " "), f"{count:,}") for name, count in sorted(done.counts.items())]
        )
    )
    for warning in done.warnings:
        say(f"warning: {warning}")
    if not done.complete:
        say("warning: the export is not complete; `unmask export` continues it")


def _tell(done: TrainerImport, validate_only: bool) -> None:
    rows = [("added", f"{done.added:,}"), ("known", f"{done.known:,}")]
    if (fit := done.fit) is not None:
        rows.append(("scored", f"{fit.scored} generations, {fit.scored_tokens:,} tokens"))
        if fit.HasField("logprob_distance"):
            rows.append(("log-probabilities", f"{fit.logprob_distance:.3g} nats from the policy's"))
        rows.append(("surprise", f"{fit.surprise:+.3g} ± {fit.surprise_error:.2g} nats a token"))
    stdout().print(key_values(rows))
    for reason, count in done.skipped.most_common():
        say(f"{count} left out: {reason}")
    if fit is None:
        say("no generation in it")
    elif validate_only:
        say("they fit the policy; nothing was kept")


def _told(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items())
