"""`unmask growth`: the growths that there are, whoever started them."""

from __future__ import annotations

import itertools
import time
from typing import Annotated

import typer

from unmask.cli.connect import connected, say, stderr, stdout
from unmask.cli.forecasts import next_halving
from unmask.cli.growth import nodes, progress_bar
from unmask.cli.numbers import count, seconds
from unmask.cli.options import Confidence, FlatNorm, HalfWidth
from unmask.cli.tables import key_values, table
from unmask.client import Client
from unmask.growth import GrowthHandle
from unmask.requests.growth import STATES, StatisticName
from unmask.v1 import growth_pb2 as pb

growths = typer.Typer(help="Growths: who samples what, how far, and for how much longer.")

GrowthId = Annotated[str, typer.Argument(metavar="GROWTH", help="Its id, gro-….")]

_NAMES = {number: name for name, number in STATES.items()}


@growths.command("list")
@connected
def list_growths(
    client: Client,
    state: Annotated[
        list[str] | None,
        typer.Option(
            "--state",
            "-s",
            help=f"Only in this state: {', '.join(STATES)}; may be given several times.",
        ),
    ] = None,
    policy: Annotated[str, typer.Option(help="Only of this student.")] = "",
    question: Annotated[str, typer.Option(help="Only of this question.")] = "",
    limit: Annotated[int, typer.Option("--limit", "-n", help="At most so many.", min=1)] = 20,
) -> None:
    """List growths, newest first."""
    found = client.list_growths(
        states=state or (), policy=policy, question=question, page_size=min(limit, 1000)
    )
    shown = table("id", "state", ">rollouts", ">of", ">cached", ">nodes", "request")
    total = 0
    for growth in itertools.islice(found, limit):
        total += 1
        shown.add_row(
            growth.id,
            _state(growth),
            count(growth.rollouts_sampled),
            _limit(growth.budget),
            count(growth.rollouts_cached),
            count(growth.nodes),
            growth.request_id,
        )
    if total:
        stdout().print(shown)
    say(f"{count(total)} growths")


@growths.command("show")
@connected
def show(client: Client, growth: GrowthId) -> None:
    """Show how far a growth is."""
    _show(client.get_growth(growth))


@growths.command("watch")
@connected
def watch(client: Client, growth: GrowthId) -> None:
    """Follow a growth to its end. Interrupting the command does not stop the growth."""
    handle = GrowthHandle(client, client.get_growth(growth))
    with progress_bar(stderr(), "growing") as update:
        last = handle.wait(update)
    _show(last)


@growths.command("pause")
@connected
def pause(client: Client, growth: GrowthId) -> None:
    """Stop a growth until it is resumed; what was sampled is kept."""
    _show(client.pause_growth(growth))


@growths.command("resume")
@connected
def resume(client: Client, growth: GrowthId) -> None:
    """Go on with a growth that is paused or has failed."""
    _show(client.resume_growth(growth))


@growths.command("extend")
@connected
def extend(
    client: Client,
    growth: GrowthId,
    rollouts: Annotated[
        int | None, typer.Option(help="How many may be sampled in all, from the start.", min=1)
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(help="How many tokens may be in all.", min=1)
    ] = None,
    rollouts_per_node: Annotated[
        int | None, typer.Option(help="Stop when each node rests on so many.", min=0)
    ] = None,
    half_width: HalfWidth = None,
    statistic: Annotated[
        StatisticName | None,
        typer.Option(metavar="WHAT", help="What is to be so sure; by default what it was."),
    ] = None,
    flat_norm: FlatNorm = None,
    confidence: Confidence = None,
) -> None:
    """Give a growth more to spend or more to reach; one that has ended goes on."""
    _show(
        client.extend_growth(
            growth,
            rollouts=rollouts,
            tokens=tokens,
            rollouts_per_node=rollouts_per_node,
            half_width=half_width,
            statistic=statistic,
            flat_norm=flat_norm,
            confidence=confidence,
        )
    )


@growths.command("cancel")
@connected
def cancel(client: Client, growth: GrowthId) -> None:
    """End a growth; what was sampled is kept."""
    _show(client.cancel_growth(growth))


def _show(growth: pb.Growth) -> None:
    rows = [
        ("growth", growth.id),
        ("request", growth.request_id),
        ("state", _state(growth)),
        ("nodes", nodes(growth)),
        (
            "rollouts",
            f"{count(growth.rollouts_sampled)} sampled of {_limit(growth.budget)}, "
            f"{count(growth.rollouts_cached)} from the cache",
        ),
        ("tokens", f"{count(growth.tokens_sampled)} sampled"),
    ]
    if growth.HasField("precision"):
        wanted = f"±{growth.precision.half_width:g} wanted"
        if growth.HasField("half_width"):
            wanted += f", ±{growth.half_width:.2g} now"
        rows.append(("sure to", wanted))
    if ahead := next_halving(growth):
        rows.append(("half that", ahead))
    if growth.HasField("seconds_left"):
        rows.append(("left", seconds(growth.seconds_left)))
    started = time.strftime("%Y-%m-%d %H:%M", time.localtime(growth.create_time.seconds))
    rows.append(("started", started))
    if growth.error:
        rows.append(("error", growth.error))
    stdout().print(key_values(rows))


def _state(growth: pb.Growth) -> str:
    name = _NAMES.get(growth.state, "unknown")
    return f"{name}, after {growth.waits_for}" if growth.waits_for else name


def _limit(budget: pb.Budget) -> str:
    parts = []
    if budget.HasField("rollouts"):
        parts.append(count(budget.rollouts))
    if budget.HasField("tokens"):
        parts.append(f"{count(budget.tokens)} tokens")
    return ", ".join(parts)
