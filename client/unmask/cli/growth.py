"""`unmask grow` and `unmask predict`, and the progress of anything that grows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from unmask.cli.connect import connected, stderr, stdout
from unmask.cli.forecasts import next_halving, show_prediction
from unmask.cli.numbers import count, seconds
from unmask.cli.options import (
    Allocation,
    Confidence,
    FlatNorm,
    HalfWidth,
    Losses,
    Objective,
    Position,
    Statistic,
    Teachers,
    TopK,
    Verifier,
)
from unmask.cli.tables import key_values
from unmask.client import Client
from unmask.requests.refs import Target, node, question_target
from unmask.v1 import growth_pb2 as pb

_STATES = {number: name.removeprefix("GROWTH_STATE_") for name, number in pb.GrowthState.items()}


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
        typer.Option(help="Stop when each node rests on so many; 0: no such goal.", min=0),
    ] = 0,
    half_width: HalfWidth = None,
    statistic: Statistic = "cosine",
    flat_norm: FlatNorm = None,
    confidence: Confidence = None,
    allocation: Allocation = "adaptive",
    teacher: Teachers = None,
    algorithm: Losses = None,
    request_id: Annotated[
        str | None, typer.Option(help="The same id is the same growth for ever.")
    ] = None,
    verifier: Verifier = "",
    objective: Objective = "",
    top_k: TopK = 0,
) -> None:
    """Sample rollouts, so that answers become surer; `unmask predict` says at what price."""
    handle = client.grow(
        _targets(trajectory or [], position, policy, question or []),
        rollouts=rollouts,
        tokens=tokens,
        rollouts_per_node=rollouts_per_node,
        allocation=allocation,
        teachers=teacher or (),
        algorithms=algorithm or (),
        half_width=half_width,
        statistic=statistic,
        flat_norm=flat_norm,
        confidence=confidence,
        request_id=request_id,
        verifier=verifier,
        objective=objective,
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
                ("nodes", nodes(growth)),
                *precision_rows(growth, statistic),
                *cost_rows(cost),
            ]
        )
    )


@connected
def predict(
    client: Client,
    trajectory: Annotated[list[str], typer.Argument(help="Generations, by id.")],
    half_width: Annotated[
        float,
        typer.Option(
            help="How sure the answers are to be: 90% intervals reach at most this far to either "
            "side of them.",
            min=0.001,
        ),
    ],
    position: Position = None,
    statistic: Statistic = "cosine",
    flat_norm: FlatNorm = None,
    confidence: Confidence = None,
    teacher: Teachers = None,
    algorithm: Losses = None,
    verifier: Verifier = "",
    objective: Objective = "",
    top_k: TopK = 0,
) -> None:
    """What would it cost to be so sure? Samples nothing."""
    console = stdout()
    with stderr().status("simulating"):
        found = client.predict_growth(
            _targets(trajectory, position, None, []),
            half_width=half_width,
            statistic=statistic,
            teachers=teacher or (),
            algorithms=algorithm or (),
            flat_norm=flat_norm,
            confidence=confidence,
            verifier=verifier,
            objective=objective,
            top_k=top_k,
        )
    show_prediction(console, found, _wanted(statistic, half_width, confidence, bool(teacher)))


def _wanted(statistic: str, half_width: float, confidence: float | None, teachers: bool) -> str:
    if statistic == "ranking":
        return f"the best teacher: {confidence or 0.95:.0%}, or its lead known to ±{half_width:g}"
    of = statistic.replace("_", " ")
    if statistic == "cosine":
        of = "every token's cosine" if teachers else "every token's ideal gradient"
    return f"{of} to ±{half_width:g}"


def nodes(growth: pb.Growth) -> str:
    """How many there are, and how many need nothing more."""
    text = f"{count(growth.nodes)} distinct, {count(growth.nodes_flat)} flat beforehand"
    if growth.HasField("half_width"):
        text += f"; {count(growth.nodes_settled)} settled (sure enough or flat)"
    return text


def precision_rows(growth: pb.Growth, statistic: str) -> list[tuple[str, str]]:
    """How sure the answers are now, and at what price they would be twice as sure."""
    if not growth.HasField("half_width"):
        return []
    # An estimate may say more than the range of a cosine.
    width = f"±{growth.half_width:.2g}" if growth.half_width < 1 else "±1 or more"
    where = "at nine in ten of the tokens not flat" if statistic == "cosine" else statistic
    rows = [("sure to", f"{width} (90% intervals): {where.replace('_', ' ')}")]
    ahead = next_halving(growth)
    return [*rows, ("half that", ahead)] if ahead else rows


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
            rest = [f"{count(rate)}/s"]
            if growth.HasField("half_width"):
                rest.append(f"{count(growth.nodes_settled)} of {count(growth.nodes)} settled")
                rest.append(f"±{growth.half_width:.2f}")
            else:
                rest.append(f"{count(growth.tokens_sampled)} tokens")
                rest.append(f"{count(growth.rollouts_cached)} cached")
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
