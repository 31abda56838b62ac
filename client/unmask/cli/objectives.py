"""`unmask objectives` and `unmask verifier`: what generations are graded by, and what follows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from unmask.cli.answers import teacher_names
from unmask.cli.comparisons import legend
from unmask.cli.connect import connected, say, stdout
from unmask.cli.numbers import share
from unmask.cli.options import Losses, Teachers, TopK
from unmask.cli.scores import push_of
from unmask.cli.tables import interval_cell, key_values, push_cell, quoted, summary_table, table
from unmask.client import Client
from unmask.v1 import catalog_pb2
from unmask.v1 import diagnosis_pb2 as pb

verifiers = typer.Typer(help="What grades generations.")

TOLD = 5
"""Tokens shown of each disagreement."""


@connected
def objectives(
    client: Client,
    trajectory: Annotated[
        list[str] | None, typer.Argument(help="Ids of generations of one student.")
    ] = None,
    objective: Annotated[
        list[str] | None,
        typer.Option(
            "--objective",
            "-o",
            help="A verifier, `own` for the question's own, or a weighted sum, as in "
            "own=1,short=-0.1. Give two to eight.",
        ),
    ] = None,
    policy: Annotated[str, typer.Option(help="Instead: all generations of this student.")] = "",
    question: Annotated[str, typer.Option(help="With --policy: only of this question.")] = "",
    teacher: Teachers = None,
    algorithm: Losses = None,
    top_k: TopK = 0,
    limit: Annotated[
        int, typer.Option("--limit", "-n", help="Tokens to show of each disagreement.", min=0)
    ] = TOLD,
) -> None:
    """What does each objective say of these teachers, and where do they disagree?"""
    wanted = [*(trajectory or [])]
    if policy:
        wanted += [t.id for t in client.list_trajectories(policy=policy, question=question)]
    if not wanted:
        raise ValueError("TRAJECTORY: give at least one, or --policy with generations")
    asked = objective or []
    found = client.compare_objectives(
        wanted, asked, teachers=teacher or (), algorithms=algorithm or (), top_k=top_k
    )
    stdout().print(_view(found, asked, teacher_names(client, teacher or []), limit))
    say(f"{len(wanted)} generations; intervals hold 90%")


def _view(
    found: pb.CompareObjectivesResponse, asked: list[str], names: Mapping[str, str], limit: int
) -> RenderableType:
    parts: list[RenderableType] = []
    for text, one in zip(asked, found.objectives, strict=True):
        parts += [Text(text, style="bold"), summary_table(one.summaries, names), ""]
    parts += [
        Text("Where they disagree", style="bold"),
        _disagreements(found.disagreements, asked, names),
    ]
    for row in found.disagreements:
        if row.nodes and limit:
            heading = (
                f"{push_of(row, names)}: {asked[row.objective]} | {asked[row.other_objective]}"
            )
            parts += ["", Text(heading, style="bold"), _tokens(row.nodes[:limit])]
    return Group(*parts, "", legend(_TERMS))


def _disagreements(
    rows: Iterable[pb.ObjectiveDisagreement], asked: list[str], names: Mapping[str, str]
) -> Table:
    made = table("teacher", "objectives", ">tokens", ">disagree")
    for row in rows:
        made.add_row(
            push_cell(push_of(row, names)),
            Text(f"{asked[row.objective]}\n{asked[row.other_objective]}"),
            str(row.scored),
            f"{row.disagreeing} ({share(row.disagreeing, row.scored)})",
        )
    return made


def _tokens(nodes: Iterable[pb.DisagreeingNode]) -> Table:
    made = table("trajectory", ">position", "token", ">cosine", ">other")
    for node in nodes:
        made.add_row(
            node.trajectory_id,
            str(node.position),
            Text(quoted(node.token.text)),
            interval_cell(node.cosine),
            interval_cell(node.other_cosine),
        )
    return made


@verifiers.command("register")
@connected
def register_verifier(
    client: Client,
    kind: Annotated[str, typer.Argument(help="regex, format, length, external, objective, ...")],
    name: Annotated[str, typer.Option(help="Unique; used wherever an id can be.")] = "",
    option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="pattern of regex and format; limit of length; source of external; a verifier and "
            "its weight of objective. May be given several times.",
        ),
    ] = None,
) -> None:
    """Register a verifier."""
    options = dict(map(_option, option or ()))
    found = client.register_verifier(kind, name=name, options=options)
    stdout().print(
        key_values(
            [
                ("verifier", found.id),
                ("name", found.name),
                ("kind", _kind(found)),
                *sorted(found.options.items()),
            ]
        )
    )


@verifiers.command("list")
@connected
def list_verifiers(client: Client) -> None:
    """List verifiers, oldest first."""
    made = table("id", "name", "kind", "options")
    for found in client.list_verifiers():
        options = "\n".join(f"{key}={value}" for key, value in sorted(found.options.items()))
        made.add_row(found.id, found.name, _kind(found), Text(options))
    stdout().print(made)


def _kind(found: catalog_pb2.Verifier) -> str:
    return catalog_pb2.VerifierKind.Name(found.kind).removeprefix("VERIFIER_KIND_").lower()


def _option(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise ValueError(f"--option: {text!r} is not NAME=VALUE")
    return name, value


_TERMS = [
    ("gain, advantage", "in the objective's own units: what its expected sum changes by"),
    (
        "disagree",
        "tokens where one objective is sure (95%) that the teacher's push helps and the other that "
        "it hurts, of those where both have a cosine",
    ),
]
