"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

from unmask.requests.growth import AllocationName, StatisticName

Teachers = Annotated[
    list[str] | None,
    typer.Option("--teacher", "-t", help="Id or name of a teacher; may be given several times."),
]
Losses = Annotated[
    list[str] | None,
    typer.Option(
        "--algorithm",
        "--loss",
        "-l",
        help="reverse_kl (the default), forward_kl, jsd:BETA, opd, grpo, dr_grpo; with :sampled "
        "for the step of the observed token. May be given several times.",
    ),
]
Verifier = Annotated[
    str, typer.Option(help="Grades the rollouts; by default the question's own verifier.")
]
Objective = Annotated[
    str,
    typer.Option(
        metavar="SUM",
        help="Instead of a verifier a weighted sum of several, as in own=1,short=-0.1, where `own` "
        "is the question's own.",
    ),
]
TopK = Annotated[
    int, typer.Option(help="How many of the likeliest tokens are candidates; 0: 20.", min=0)
]
Plain = Annotated[
    bool, typer.Option("--plain", help="Marks instead of colours; so it is in pipes anyway.")
]
TrajectoryId = Annotated[str, typer.Argument(metavar="TRAJECTORY", help="Its id, trj-….")]
Position = Annotated[
    int | None, typer.Option("--position", "-p", help="Which token of the trajectory, from 0.")
]
Allocation = Annotated[
    AllocationName,
    typer.Option(
        metavar="HOW",
        help="adaptive: each batch where it lowers the uncertainty most per token. policy: free "
        "rollouts from each node. equal: the same number forced through every candidate, the "
        "paper's way, at several times the price. depth_windows: equal over windows of positions.",
    ),
]
HalfWidth = Annotated[
    float | None,
    typer.Option(
        help="Stop when answers are so sure: 90% intervals reach at most this far to either side "
        "of them. A cosine lies in -1 to 1; 0.2 is good, 0.1 costs four times as much.",
        min=0.001,
    ),
]
Statistic = Annotated[
    StatisticName,
    typer.Option(
        metavar="WHAT",
        help="What is to be so sure. cosine: each token's by itself. mean_cosine, pooled_cosine, "
        "gain_per_unit_step: the numbers of the whole set. ranking: only which teacher is best.",
    ),
]
FlatNorm = Annotated[
    float | None,
    typer.Option(
        help="A token is settled when nothing there changes success by more than this; 0.05.",
        min=0,
        max=1,
    ),
]
Confidence = Annotated[
    float | None,
    typer.Option(help="With ranking: how sure to be of the best teacher; 0.95.", min=0.5, max=1),
]
