"""`unmask diagnose`: from a file of questions to an answer, in one command."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from unmask.algorithms import parse_algorithms
from unmask.cli import report as reports
from unmask.cli import study
from unmask.cli.catalog import SERVED, StopTexts, Template, read, unescape
from unmask.cli.connect import connected, model_argument, stderr, stdout
from unmask.cli.growth import cost_of, progress_bar
from unmask.cli.options import (
    Allocation,
    HalfWidth,
    Losses,
    Objective,
    Plain,
    Statistic,
    TopK,
    Verifier,
)
from unmask.cli.sources import QUESTIONS
from unmask.cli.trajectories import sampling_bar
from unmask.client import Client
from unmask.objectives import parse_terms
from unmask.v1 import growth_pb2

DEFAULT_PER_NODE = 32
"""Rollouts a node, where nothing says how sure the answers are to be."""


def _diagnose(
    client: Client,
    questions: Annotated[str, typer.Argument(help=QUESTIONS)],
    student: Annotated[str, typer.Option(help=f"Its directory, in Hugging Face format{SERVED}.")],
    teacher: Annotated[
        list[str] | None,
        typer.Option(
            "--teacher",
            "-t",
            metavar="NAME=DIR",
            help="Likewise, with what to call it. May be given several times.",
        ),
    ] = None,
    context: Annotated[
        list[str] | None,
        typer.Option(
            help="Self-distillation: the student, shown answer, hint, solution, … of the question. "
            "May be given several times."
        ),
    ] = None,
    algorithm: Losses = None,
    samples: Annotated[int, typer.Option(help="Generations for each question.", min=1)] = 4,
    half_width: HalfWidth = None,
    statistic: Statistic = "cosine",
    rollouts_per_node: Annotated[
        int | None,
        typer.Option(
            help="What a token's answer rests on, on average over those that are not flat; 32, or "
            "with --half-width no such goal.",
            min=1,
        ),
    ] = None,
    max_rollouts: Annotated[
        int | None,
        typer.Option(
            help="Spend no more than this in all; by default 32 for each token, or what "
            "--rollouts-per-node says, or with --half-width alone 256.",
            min=1,
        ),
    ] = None,
    allocation: Allocation = "adaptive",
    temperature: Annotated[float, typer.Option(help="The student's, when it samples.")] = 1.0,
    prompt_template: Template = None,
    stop_text: StopTexts = None,
    max_questions: Annotated[
        int | None, typer.Option(help="Only the first so many.", min=1)
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Length of a generation; 0: 256.")] = 0,
    seed: Annotated[int, typer.Option(help="Another seed gives other generations.")] = 0,
    verifier: Verifier = "",
    objective: Objective = "",
    top_k: TopK = 0,
    json: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write everything there.")
    ] = None,
    plain: Plain = False,
) -> None:
    """Where do these teachers push this student towards success?

    Samples the student's generations, spends rollouts on the success of the tokens it might have
    said, and compares each teacher's push with the one that would help most. Without a server it
    runs one of its own, on --database. Running it again costs nothing.
    """
    plan = study.Plan(
        questions=questions,
        student=model_argument(student),
        teachers=tuple(_teacher(text) for text in teacher or ()),
        contexts=tuple(context or ()),
        losses=tuple(algorithm or ("reverse_kl",)),
        samples=samples,
        rollouts_per_node=_goal(rollouts_per_node, half_width),
        max_rollouts=max_rollouts,
        half_width=half_width,
        statistic=statistic,
        allocation=allocation,
        temperature=temperature,
        prompt_template=read(prompt_template),
        stop_texts=tuple(unescape(text) for text in stop_text or ()),
        max_questions=max_questions,
        max_new_tokens=max_new_tokens,
        seed=seed,
        verifier=verifier,
        top_k=top_k,
        objective=objective,
    )
    parse_terms(plan.objective)
    parse_algorithms(plan.losses)  # before anything is paid for
    if not plan.teachers and not plan.contexts:
        raise ValueError("--teacher: give at least one, or a --context")
    report = _run(client, plan)
    if json:
        reports.write_json(json, report)
    reports.show(stdout(), report, plain=plain)


diagnose = connected(_diagnose, embedded=True)


def _run(client: Client, plan: study.Plan) -> reports.Report:
    console = stderr()
    begun = time.monotonic()
    with console.status("registering"):
        subjects = study.register(client, plan)
        study.check_size(subjects.questions, plan)
    with sampling_bar(console, len(subjects.questions) * plan.samples) as update:
        sampled = study.sample(client, subjects, plan, update)
    trajectories = list(sampled.trajectories)
    started = time.monotonic()
    handle = study.start_growth(client, subjects, plan, trajectories)
    first = growth_pb2.Growth.FromString(handle.growth.SerializeToString())
    with progress_bar(console, "growing") as update:
        last = handle.wait(update)
    cost = cost_of(first, last, time.monotonic() - started)
    with console.status("scoring teachers"):
        summary = client.summarize(
            trajectories,
            teachers=list(subjects.labels),
            algorithms=plan.losses,
            **plan.grading,
            top_k=plan.top_k,
        )
        examples = study.examples(client, subjects, plan, trajectories)
    return reports.Report(
        plan=plan,
        subjects=subjects,
        trajectories=trajectories,
        sampled_trajectories=sampled.sampled,
        growth=last,
        cost=cost,
        seconds=time.monotonic() - begun,
        summary=summary,
        examples=examples,
    )


def _teacher(text: str) -> tuple[str, str]:
    name, equals, model = text.partition("=")
    if not (name and equals and model):
        raise ValueError(f"--teacher: {text!r} is not NAME=DIR")
    return name, model_argument(model)


def _goal(rollouts_per_node: int | None, half_width: float | None) -> int:
    """Rollouts a node; 0 if the wanted precision alone says when there are enough."""
    if rollouts_per_node is not None:
        return rollouts_per_node
    return DEFAULT_PER_NODE if half_width is None else 0
