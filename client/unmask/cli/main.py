"""The `unmask` command, put together."""

from __future__ import annotations

from typing import Annotated

import typer

import unmask
from unmask.cli import answers, catalog, growth, growths, objectives, sharing, trajectories
from unmask.cli.diagnose import diagnose
from unmask.cli.doctor import doctor
from unmask.cli.findings import findings

app = typer.Typer(
    name="unmask",
    help="Where does a teacher push a student towards success, and how sure is that?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"unmask {unmask.__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


app.command("diagnose")(diagnose)
app.command("findings")(findings)
app.command()(answers.view)
app.command()(answers.align)
app.command()(answers.node)
app.command()(answers.summary)
app.command()(objectives.objectives)
app.command()(growth.grow)
app.command()(growth.predict)
app.command()(trajectories.sample)
app.command()(catalog.preview)
app.command()(answers.stats)
app.command("doctor")(doctor)
app.command()(sharing.export)
app.command("import")(sharing.import_)
app.add_typer(catalog.policies, name="policy", no_args_is_help=True)
app.add_typer(catalog.teachers, name="teacher", no_args_is_help=True)
app.add_typer(catalog.questions, name="question", no_args_is_help=True)
app.add_typer(objectives.verifiers, name="verifier", no_args_is_help=True)
app.add_typer(growths.growths, name="growth", no_args_is_help=True)
app.add_typer(trajectories.trajectories, name="trajectory", no_args_is_help=True)
