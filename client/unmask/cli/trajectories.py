"""`unmask sample` and `unmask trajectory`."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.padding import Padding
from rich.progress import Progress
from rich.text import Text

from unmask.calls import Divided
from unmask.cli.connect import connected, say, stderr, stdout
from unmask.cli.numbers import clip, share
from unmask.cli.options import TrajectoryId
from unmask.cli.tables import quoted, table
from unmask.client import Client
from unmask.requests.trajectory import sample_trajectories
from unmask.v1 import trajectory_pb2 as pb

trajectories = typer.Typer(help="Generations under diagnosis.")

_FINISHES = {
    pb.FINISH_REASON_UNSPECIFIED: "not known",
    pb.FINISH_REASON_STOP: "stopped by itself",
    pb.FINISH_REASON_LENGTH: "cut off",
}

Policy = Annotated[str, typer.Option("--policy", help="Id or name of the student.")]


def is_correct(trajectory: pb.Trajectory) -> bool:
    """Reward above one half, as the contract has it."""
    return trajectory.reward > 0.5


@connected
def sample(
    client: Client,
    policy: Policy,
    questions: Annotated[
        list[str] | None, typer.Argument(help="Ids or names; none: all questions there are.")
    ] = None,
    count: Annotated[int, typer.Option("--count", "-n", help="How many for each.", min=1)] = 1,
    seed: Annotated[int, typer.Option(help="Another seed gives other generations.")] = 0,
) -> None:
    """Sample generations of a student. What was sampled before costs nothing."""
    wanted = questions or [question.id for question in client.list_questions()]
    call = sample_trajectories(policy, wanted, count=count, seed=seed)
    with sampling_bar(stderr(), len(wanted) * count) as update:
        answer = sampled(client, call, update)
    _list(client, answer.trajectories)
    correct = sum(map(is_correct, answer.trajectories))
    total = len(answer.trajectories)
    say(f"{answer.sampled} of {total} sampled now; {share(correct, total)} correct")


def sampled(
    client: Client,
    call: Divided[pb.SampleTrajectoriesResponse],
    update: Callable[[int], object],
) -> pb.SampleTrajectoriesResponse:
    """All that a call samples, however long it takes; `update` is told how many there are yet."""
    whole = pb.SampleTrajectoriesResponse()
    for part in client.parts(call):
        call.add(whole, part)
        update(len(whole.trajectories))
    return whole


@contextmanager
def sampling_bar(console: Console, total: int) -> Iterator[Callable[[int], None]]:
    """A bar to be told how many generations there are. Silent unless `console` is a terminal."""
    bar = Progress(console=console, transient=True, disable=not console.is_terminal)
    with bar:
        task = bar.add_task("sampling", total=total)
        yield lambda done: bar.update(task, completed=done)


@trajectories.command("list")
@connected
def list_trajectories(
    client: Client,
    policy: Annotated[str, typer.Option(help="Only of this student.")] = "",
    question: Annotated[str, typer.Option(help="Only of this question.")] = "",
    correct: Annotated[
        bool | None, typer.Option("--correct/--incorrect", help="Only those.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", help="At most so many.", min=1)] = 100,
) -> None:
    """List generations, oldest first."""
    found = client.list_trajectories(
        policy=policy, question=question, correct=correct, page_size=min(limit, 1000)
    )
    _list(client, itertools.islice(found, limit))


@trajectories.command("show")
@connected
def show(
    client: Client,
    trajectory: TrajectoryId,
    tokens: Annotated[bool, typer.Option("--tokens", help="List every token.")] = False,
) -> None:
    """Show a generation."""
    found = client.get_trajectory(trajectory)
    console = stdout()
    console.print(heading(client, found))
    console.print(Padding(Text(found.text), (1, 0, 0, 2)))
    if tokens:
        made = table(">pos", ">id", "token")
        for position, token in enumerate(found.tokens):
            made.add_row(str(position), str(token.id), Text(quoted(token.text)))
        console.print(made)


@trajectories.command("submit")
@connected
def submit(
    client: Client,
    policy: Policy,
    question: Annotated[str, typer.Option("--question", help="Id or name of the question.")],
    text: Annotated[str | None, typer.Option(help="The generation as text.")] = None,
    tokens: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The generation as a JSON list of token ids (preferred).",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    finish_reason: Annotated[
        Literal["stop", "length"] | None, typer.Option(help="Why it ended.")
    ] = None,
) -> None:
    """Bring a generation along."""
    found = client.submit_trajectory(
        policy,
        question,
        tokens=None if tokens is None else _ids(tokens),
        text=text,
        finish_reason=finish_reason,
    )
    stdout().print(heading(client, found))


def heading(client: Client, trajectory: pb.Trajectory) -> Text:
    """What a generation is: its question, and how it went."""
    question = client.get_question(trajectory.question_id)
    asked = question.fields.get("question", "") or f"{len(question.prompt_tokens)} prompt tokens"
    return heading_text(trajectory, asked, question.fields.get("answer", ""))


def heading_text(trajectory: pb.Trajectory, asked: str, answer: str) -> Text:
    """The same when the question is known."""
    text = Text(trajectory.id, style="bold")
    text.append("  ")
    if is_correct(trajectory):
        text.append("✓ correct", "bold green")
    else:
        text.append("✗ incorrect", "bold red")
    text.append(f"  {trajectory.length} tokens, {_FINISHES[trajectory.finish_reason]}", "not bold")
    text.append(f"\n{' '.join(asked.split())}", "not bold")
    if answer:
        text.append(f"  (answer: {' '.join(answer.split())})", "not bold dim")
    return text


def _list(client: Client, found: Iterable[pb.Trajectory]) -> None:
    made = table("id", ">reward", ">tokens", "ends with", "question")
    asked: dict[str, str] = {}
    for trajectory in found:
        if trajectory.question_id not in asked:
            question = client.get_question(trajectory.question_id)
            asked[question.id] = question.name or clip(question.fields.get("question", ""), 20)
        made.add_row(
            trajectory.id,
            f"{trajectory.reward:g}",
            str(trajectory.length),
            Text(clip(trajectory.text, 16, end=True)),
            Text(asked[trajectory.question_id]),
        )
    stdout().print(made)


def _ids(file: Path) -> list[int]:
    ids = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(ids, list) or not all(type(token) is int for token in ids):
        raise ValueError(f"{file}: not a JSON list of token ids")
    return ids
