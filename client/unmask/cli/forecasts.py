"""What sampling will cost, as it is shown."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from unmask.cli.numbers import count, rough, seconds
from unmask.cli.tables import key_values, table
from unmask.v1 import growth_pb2 as pb

RANGE = "Ranges hold four times in five."
SETTLED = (
    "settled: sure enough already, or flat: the student is so sure there, or all its ways out are "
    "so alike, that no teacher's push can matter."
)


def show_prediction(console: Console, found: pb.PredictGrowthResponse, what: str) -> None:
    """Print what it will cost to make `what` sure, and what needs nothing more."""
    console.print(Text(f"To be sure of {what}:"))
    console.print()
    legend = []
    if found.forecast.rollouts.high:
        console.print(forecast_table(found.forecast))
        if found.may_be_more:
            legend.append("It may cost more: some of the simulated growths did not get there.")
        legend.append(RANGE)
        if not found.forecast.HasField("seconds"):
            legend.append("No time yet: this server has not sampled this student since its start.")
    else:
        console.print(Text("Nothing more is needed.", style="bold"))
    console.print()
    console.print(
        key_values(
            [
                ("settled", f"{count(found.nodes_settled)} of {count(found.nodes)} tokens"),
                ("cached", f"{count(found.rollouts_cached)} rollouts already count there"),
            ]
        )
    )
    console.print()
    for line in (*legend, SETTLED):
        console.print(Text(line, style="dim"))


def forecast_table(forecast: pb.Forecast) -> Table:
    """Rollouts, tokens and time, with their ranges."""
    made = table("", ">likely", ">range")
    for name, field, show in _ROWS:
        if forecast.HasField(field):  # type: ignore[arg-type]
            found: pb.Range = getattr(forecast, field)
            reach = f"{show(found.low)}…{show(found.high)}"
            made.add_row(name, Text(show(found.median), "bold"), reach)
    return made


def next_halving(growth: pb.Growth) -> str:
    """What twice the precision would cost, in words; empty if that is not known."""
    if not (growth.HasField("half_width") and growth.HasField("next_halving")):
        return ""
    ahead = growth.next_halving
    return (
        f"±{growth.half_width / 2:.2g} would take about {rough(ahead.rollouts.median)} more "
        f"rollouts ({rough(ahead.rollouts.low)}…{rough(ahead.rollouts.high)}), "
        f"{rough(ahead.tokens.median)} tokens"
    )


_ROWS: list[tuple[str, str, Callable[[float], str]]] = [
    ("rollouts", "rollouts", rough),
    ("tokens", "tokens", rough),
    ("time", "seconds", seconds),
]
