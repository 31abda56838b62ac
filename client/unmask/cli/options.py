"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

Teachers = Annotated[
    list[str] | None,
    typer.Option("--teacher", "-t", help="Id or name of a teacher; may be given several times."),
]
Losses = Annotated[
    list[str] | None,
    typer.Option(
        "--loss",
        "-l",
        help="reverse_kl (the default), forward_kl, jsd:BETA, opd, grpo, dr_grpo; with :sampled "
        "for the step of the observed token. May be given several times.",
    ),
]
Verifier = Annotated[
    str, typer.Option(help="Grades the rollouts; by default the question's own verifier.")
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
