"""`unmask findings`: the paper's claims, examined on one's own models."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table

from unmask.algorithms import parse_algorithms
from unmask.cli import study
from unmask.cli.catalog import SERVED, StopTexts, Template, read, unescape
from unmask.cli.connect import connected, model_argument, stderr, stdout
from unmask.cli.growth import progress_bar
from unmask.cli.options import TopK, Verifier
from unmask.cli.sources import QUESTIONS
from unmask.client import Client
from unmask.findings import page
from unmask.findings.claims import CLAIMS
from unmask.findings.collect import FIRST, METHODS, Wanted, cells
from unmask.findings.finding import Finding, Verdict
from unmask.growth import GrowthHandle

_STYLES = {Verdict.SUPPORTED: "green", Verdict.CONTRADICTED: "red", Verdict.UNDECIDED: "yellow"}


def _findings(
    client: Client,
    questions: Annotated[
        str, typer.Argument(help=f"{QUESTIONS} Their field `task` makes a task of each.")
    ],
    student: Annotated[
        list[str],
        typer.Option(
            metavar="NAME=DIR", help=f"May be given several times: of different capacity{SERVED}."
        ),
    ],
    teacher: Annotated[
        list[str] | None,
        typer.Option("--teacher", "-t", metavar="NAME=DIR", help="The strongest one first."),
    ] = None,
    context: Annotated[
        list[str] | None,
        typer.Option(help="Self-distillation: the student, shown none, answer, solution, …"),
    ] = None,
    samples: Annotated[int, typer.Option(help="Generations for each question.", min=1)] = 4,
    max_questions: Annotated[
        int | None, typer.Option(help="Only the first so many of each task.", min=1)
    ] = None,
    max_rollouts: Annotated[
        int, typer.Option(help="The budget of each student on each task.", min=1)
    ] = 4000,
    methods_on: Annotated[
        int,
        typer.Option(help="Questions on whose first generation algorithms are compared.", min=0),
    ] = 12,
    temperature: Annotated[float, typer.Option(help="The students', when they sample.")] = 1.0,
    prompt_template: Template = None,
    stop_text: StopTexts = None,
    max_new_tokens: Annotated[int, typer.Option(help="Length of a generation; 0: 256.")] = 0,
    seed: Annotated[int, typer.Option(help="Another seed gives other generations.")] = 0,
    verifier: Verifier = "",
    top_k: TopK = 0,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.md", help="Also write the page there.")
    ] = None,
    json: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write everything there.")
    ] = None,
) -> None:
    """Do the findings of "Unmasking On-Policy Distillation" hold for these models?

    Claim by claim: a table with intervals, and supported, contradicted or undecided at this budget.
    It may be interrupted: the next run goes on where it was, and pays for nothing twice.
    """
    plan = study.Plan(
        questions=questions,
        student="",
        teachers=tuple(map(_named, teacher or ())),
        contexts=tuple(context or ()),
        losses=(FIRST,),
        samples=samples,
        rollouts_per_node=0,
        max_rollouts=max_rollouts,
        half_width=None,
        statistic="cosine",
        allocation="adaptive",
        temperature=temperature,
        prompt_template=read(prompt_template),
        stop_texts=tuple(unescape(text) for text in stop_text or ()),
        max_questions=None,
        max_new_tokens=max_new_tokens,
        seed=seed,
        verifier=verifier,
        top_k=top_k,
    )
    if not plan.teachers and not plan.contexts:
        raise ValueError("--teacher: give at least one, or a --context")
    wanted = Wanted(
        students=tuple(map(_named, student)),
        plan=plan,
        methods=METHODS if methods_on else (),
        methods_on=methods_on,
        questions_per_task=max_questions,
    )
    parse_algorithms([FIRST, *wanted.methods])
    console = stderr()
    found_cells = list(cells(client, wanted, _step(console)))
    with console.status("examining"):
        findings = [examine(found_cells) for examine in CLAIMS]
    text = page.page(found_cells, findings, _command())
    if out:
        page.write(out, text)
    if json:
        page.write(json, page.as_json(found_cells, findings))
    _show(stdout(), findings, text, whole=not out)


findings = connected(_findings, embedded=True)


def _step(console: Console):  # type: ignore[no-untyped-def]
    def step(what: str, handle: GrowthHandle | None) -> None:
        console.print(f"[dim]{what}[/dim]")
        if handle is not None:
            with progress_bar(console, what) as update:
                handle.wait(update)

    return step


def _named(text: str) -> tuple[str, str]:
    name, equals, model = text.partition("=")
    if not (name and equals and model):
        raise ValueError(f"{text!r} is not NAME=DIR")
    return name, model_argument(model)


def _command() -> str:
    """What was typed, without where the command lies."""
    return shlex.join(["unmask", *sys.argv[1:]])


def _show(console: Console, findings: Sequence[Finding], text: str, *, whole: bool) -> None:
    if whole and not console.is_terminal:
        # For pipes: the page as it is.
        print(text, end="", file=console.file)
        return
    if whole:
        console.print(Markdown(text))
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("claim")
    table.add_column("verdict")
    for found in findings:
        table.add_row(found.claim, f"[{_STYLES[found.verdict]}]{found.verdict.value}[/]")
    console.print(table)
