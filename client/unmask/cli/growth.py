"""`unmask grow`, and the progress of anything that grows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from unmask.cli.connect import connected, stderr, stdout
from unmask.cli.numbers import count, seconds
from unmask.cli.options import Position, Teachers, TopK, Verifier
from unmask.cli.tables import key_values
from unmask.client import Client
from unmask.requests.refs import Target, node, question_target
from unmask.v1 import growth_pb2 as pb

_STATES = {number: name.removeprefix("GROWTH_STATE_") for name, number in pb.GrowthState.items()}

Allocation = Annotated[
    Literal["policy", "equal"],
    typer.Option(
        help="policy: free rollouts from each node. equal: the same number forced through every "
        "candidate, the paper's way, at several times the price."
    ),
]


@dataclass(frozen=True, slots=True)
class Cost:
    """What a growth took."""

    rollouts_sampled: int
    """By this run."""
    tokens_sampled: int
    """By this run."""
    rollouts_cached: int
    """Found: sampled by others, or by an earlier run of the same request."""
    seconds: float
    """Of waiting."""


@connected
def grow(
    client: Client,
    trajectory: Annotated[
        list[str] | None, typer.Argument(help="Generations, by id: every node of each.")
    ] = None,
    position: Position = None,
    policy: Annotated[str | None, typer.Option(help="With --question, instead.")] = None,
    question: Annotated[
        list[str] | None, typer.Option(help="A question as a whole: free rollouts.")
    ] = None,
    rollouts: Annotated[int | None, typer.Option(help="How many may be sampled.", min=1)] = None,
    tokens: Annotated[int | None, typer.Option(help="How many tokens may be.", min=1)] = None,
    rollouts_per_node: Annotated[
        int,
        typer.Option(help="How many each node should rest on; 0: spend the budget.", min=0),
    ] = 0,
    allocation: Allocation = "policy",
    teacher: Teachers = None,
    request_id: Annotated[
        str | None, typer.Option(help="The same id is the same growth for ever.")
    ] = None,
    verifier: Verifier = "",
    top_k: TopK = 0,
) -> None:
    """Sample rollouts, so that estimates become surer."""
    handle = client.grow(
        _targets(trajectory or [], position, policy, question or []),
        rollouts=rollouts,
        tokens=tokens,
        rollouts_per_node=rollouts_per_node,
        allocation=allocation,
        teachers=teacher or (),
        request_id=request_id,
        verifier=verifier,
        top_k=top_k,
    )
    started = time.monotonic()
    first = pb.Growth.FromString(handle.growth.SerializeToString())
    with progress_bar(stderr(), "growing") as update:
        growth = handle.wait(update)
    cost = cost_of(first, growth, time.monotonic() - started)
    stdout().print(
        key_values(
            [
                ("growth", growth.id),
                ("state", _STATES[growth.state].lower()),
                ("nodes", f"{count(growth.nodes)}, {count(growth.nodes_flat)} of them flat"),
                *cost_rows(cost),
            ]
        )
    )


def cost_of(first: pb.Growth, last: pb.Growth, waited: float) -> Cost:
    """The cost of waiting for a growth that was `first` and is `last`.

    A growth that was found, by its request_id, cost this run only what it sampled since.
    """
    return Cost(
        rollouts_sampled=last.rollouts_sampled - first.rollouts_sampled,
        tokens_sampled=last.tokens_sampled - first.tokens_sampled,
        rollouts_cached=last.rollouts_cached + first.rollouts_sampled,
        seconds=waited,
    )


def cost_rows(cost: Cost) -> list[tuple[str, str]]:
    """For `key_values`."""
    return [
        (
            "rollouts",
            f"{count(cost.rollouts_sampled)} sampled, {count(cost.rollouts_cached)} from the cache",
        ),
        ("tokens", f"{count(cost.tokens_sampled)} sampled"),
        ("growing", seconds(cost.seconds)),
    ]


@contextmanager
def progress_bar(console: Console, title: str) -> Iterator[Callable[[pb.Growth], None]]:
    """A bar to be told how far a growth is. Silent unless `console` is a terminal."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rest]}", style="dim"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    started = time.monotonic()
    before: list[int] = []
    with bar:
        task = bar.add_task(title, total=None, rest="")

        def update(growth: pb.Growth) -> None:
            before[:] = before or [growth.rollouts_sampled]
            took = max(time.monotonic() - started, 1e-3)
            rate = (growth.rollouts_sampled - before[0]) / took
            rest = [
                f"{count(rate)}/s",
                f"{count(growth.tokens_sampled)} tokens",
                f"{count(growth.rollouts_cached)} cached",
            ]
            if growth.HasField("seconds_left"):
                rest.append(f"{seconds(growth.seconds_left)} left")
            bar.update(
                task,
                total=growth.rollouts_planned or None,
                completed=growth.rollouts_sampled,
                rest=" · ".join(rest),
            )

        yield update


def _targets(
    trajectories: list[str], position: int | None, policy: str | None, questions: list[str]
) -> list[Target]:
    if position is not None:
        if len(trajectories) != 1:
            raise ValueError("--position: goes with exactly one trajectory")
        return [node(trajectory=trajectories[0], position=position)]
    if questions and policy is None:
        raise ValueError("--policy: say under which policy to grow the question")
    targets: list[Target] = [*trajectories]
    targets += [question_target(policy or "", question) for question in questions]
    if not targets:
        raise ValueError("TRAJECTORY: give at least one, or --policy and --question")
    return targets
