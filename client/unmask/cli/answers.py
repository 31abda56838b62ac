"""`unmask align`, `node`, `view`, `summary` and `stats`: what is known already."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from unmask.cli.comparisons import summary_view
from unmask.cli.connect import connected, say, stdout
from unmask.cli.numbers import count, median
from unmask.cli.options import (
    Losses,
    Objective,
    Plain,
    Position,
    Teachers,
    TopK,
    TrajectoryId,
    Verifier,
)
from unmask.cli.scores import STATUS_NAMES, by_push
from unmask.cli.tables import (
    alignment_table,
    candidate_table,
    gradient_table,
    key_values,
    node_table,
    token_table,
)
from unmask.cli.trajectories import heading
from unmask.cli.view import token_view
from unmask.client import Client

OptionalTrajectory = Annotated[
    str | None, typer.Argument(metavar="[TRAJECTORY]", help="Its id, with --position.")
]
Policy = Annotated[str | None, typer.Option(help="Or name the node by policy, with --question")]
Question = Annotated[str | None, typer.Option(help="and --prefix.")]
Prefix = Annotated[str | None, typer.Option(help="Generated text so far.")]
PrefixTokens = Annotated[
    str | None, typer.Option(metavar="IDS", help="Or its token ids, as in 12,7,30.")
]
Observed = Annotated[
    int | None, typer.Option("--observed", help="Id of the token in question, for :sampled.")
]
Latest = Annotated[
    bool, typer.Option("--latest", help="See what other servers recorded in the last second too.")
]


@connected
def align(
    client: Client,
    trajectory: OptionalTrajectory = None,
    position: Position = None,
    policy: Policy = None,
    question: Question = None,
    prefix: Prefix = None,
    prefix_tokens: PrefixTokens = None,
    observed: Observed = None,
    teacher: Teachers = None,
    algorithm: Losses = None,
    verifier: Verifier = "",
    objective: Objective = "",
    top_k: TopK = 0,
    latest: Latest = False,
) -> None:
    """At one token: does each teacher push towards success, and how sure is that?"""
    answer = client.alignment(
        **_node(trajectory, position, policy, question, prefix, prefix_tokens, observed),
        teachers=teacher or (),
        algorithms=algorithm or (),
        verifier=verifier,
        objective=objective,
        top_k=top_k,
        latest=latest,
    )
    console = stdout()
    console.print(node_table(answer.node))
    console.print(alignment_table(answer.alignments, teacher_names(client, teacher or [])))


@connected
def node(
    client: Client,
    trajectory: OptionalTrajectory = None,
    position: Position = None,
    policy: Policy = None,
    question: Question = None,
    prefix: Prefix = None,
    prefix_tokens: PrefixTokens = None,
    observed: Observed = None,
    teacher: Teachers = None,
    limit: Annotated[
        int, typer.Option("--limit", "-n", help="How many candidates to show.", min=1)
    ] = 20,
    gradient: Annotated[
        bool, typer.Option("--gradient", help="The ideal gradient instead of the candidates.")
    ] = False,
    verifier: Verifier = "",
    objective: Objective = "",
    top_k: TopK = 0,
    latest: Latest = False,
) -> None:
    """At one token: which next tokens lead to success?"""
    asked: dict[str, Any] = {
        **_node(trajectory, position, policy, question, prefix, prefix_tokens, observed),
        "teachers": teacher or (),
        "verifier": verifier,
        "objective": objective,
        "top_k": top_k,
        "latest": latest,
    }
    console = stdout()
    if gradient:
        ideal = client.ideal_gradient(**asked)
        console.print(node_table(ideal.node))
        rows = [("status", STATUS_NAMES[ideal.status]), ("|g| at most", f"{ideal.norm_bound:.4f}")]
        if ideal.HasField("norm"):
            rows.insert(1, ("|g|", median(ideal.norm, 4)))
        console.print(key_values(rows))
        console.print(gradient_table(ideal, limit))
        return
    found = client.get_node(**asked)
    console.print(node_table(found.node))
    console.print(candidate_table(found, limit))
    if len(found.candidates) > limit:
        say(f"the {limit} likeliest of {len(found.candidates)} candidates; --limit shows more")


@connected
def view(
    client: Client,
    trajectory: TrajectoryId,
    teacher: Teachers = None,
    algorithm: Losses = None,
    table: Annotated[
        bool, typer.Option("--table", help="Also every token's numbers, a table for each teacher.")
    ] = False,
    plain: Plain = False,
    verifier: Verifier = "",
    objective: Objective = "",
    top_k: TopK = 0,
    latest: Latest = False,
) -> None:
    """A generation, token by token: where a teacher's push helps and where it hurts."""
    found = client.get_trajectory(trajectory)
    answers = client.trajectory_alignments(
        trajectory,
        teachers=teacher or (),
        algorithms=algorithm or (),
        verifier=verifier,
        objective=objective,
        top_k=top_k,
        latest=latest,
    )
    scores = by_push(answers, teacher_names(client, teacher or []))
    texts = [token.text for token in found.tokens]
    console = stdout()
    console.print(heading(client, found))
    console.print()
    console.print(token_view(console, texts, scores, plain=plain))
    if table:
        for push, by_position in scores.items():
            console.print()
            console.print(token_table(push, texts, by_position))


@connected
def summary(
    client: Client,
    trajectory: Annotated[
        list[str] | None, typer.Argument(help="Ids of generations of one student.")
    ] = None,
    policy: Annotated[str, typer.Option(help="Instead: all generations of this student.")] = "",
    question: Annotated[str, typer.Option(help="With --policy: only of this question.")] = "",
    teacher: Teachers = None,
    algorithm: Losses = None,
    verifier: Verifier = "",
    objective: Objective = "",
    top_k: TopK = 0,
    latest: Latest = False,
) -> None:
    """Over a set of generations: one statement for each teacher and loss."""
    wanted = trajectory or []
    if policy:
        wanted = [*wanted, *(t.id for t in client.list_trajectories(
            policy=policy, question=question))]  # fmt: skip
    if not wanted:
        raise ValueError("TRAJECTORY: give at least one, or --policy with generations")
    found = client.summarize(
        wanted,
        teachers=teacher or (),
        algorithms=algorithm or (),
        verifier=verifier,
        objective=objective,
        top_k=top_k,
        latest=latest,
    )
    stdout().print(summary_view(found, teacher_names(client, teacher or [])))
    say(f"{len(wanted)} generations; intervals hold 90%")


@connected
def stats(client: Client) -> None:
    """How much is stored, and what the server has computed since it started."""
    found = client.statistics()
    stdout().print(
        key_values(
            [
                ("trees", count(found.trees)),
                ("nodes", count(found.nodes)),
                ("rollouts", count(found.rollouts)),
                ("tokens", count(found.tokens)),
                ("distributions", count(found.distributions)),
                (
                    "since the start",
                    f"{count(found.rollouts_sampled)} rollouts and {count(found.tokens_sampled)} "
                    f"tokens sampled, {count(found.distributions_scored)} distributions computed",
                ),
            ]
        )
    )


def teacher_names(client: Client, teachers: list[str]) -> dict[str, str]:
    """From teachers' ids to what the user calls them."""
    return {client.get_teacher(teacher).id: teacher for teacher in teachers}


def _node(
    trajectory: str | None,
    position: int | None,
    policy: str | None,
    question: str | None,
    prefix: str | None,
    prefix_tokens: str | None,
    observed: int | None,
) -> dict[str, Any]:
    return {
        "trajectory": trajectory,
        "position": position,
        "policy": policy,
        "question": question,
        "prefix": prefix if prefix_tokens is None else _ids(prefix_tokens),
        "observed_token": observed,
    }


def _ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ValueError(f"--prefix-tokens: {text!r} is no list like 12,7,30") from None
