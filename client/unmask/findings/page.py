"""The findings as a page of text and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unmask.cli.numbers import NOTHING, count
from unmask.findings.collect import Cell
from unmask.findings.finding import Finding, Range, Value

_SMALL = 0.1
"""Numbers all below it are shown with a digit more."""


def page(cells: Sequence[Cell], findings: Sequence[Finding], command: str) -> str:
    """Markdown."""
    parts = [
        "# The paper's claims, examined",
        "",
        "What *Unmasking On-Policy Distillation* (arXiv 2605.10889) finds, asked of these models. "
        "Whatever came out stands here; a verdict is about these models at this budget.",
        "",
        f"    {command}",
        "",
        *_table(
            ("student, task", "questions", "generations", "correct", "tokens", "rollouts"),
            [
                (
                    cell.name,
                    len(cell.subjects.questions),
                    len(cell.trajectories),
                    f"{100 * cell.correct:.0f}%",
                    sum(map(len, cell.tokens.values())),
                    cell.rollouts,
                )
                for cell in cells
            ],
        ),
        "",
        *(f"- {remark}" for remark in dict.fromkeys(r for c in cells for r in c.subjects.remarks)),
        "",
        *_table(("claim", "verdict"), [(found.claim, found.verdict.value) for found in findings]),
        "",
        "Intervals are 90%. A gap, a difference or a `beyond` is of paired numbers, on the same "
        "rollouts and resamples.",
        "",
    ]
    for i, found in enumerate(findings, 1):
        parts += [
            f"## {i}. {found.claim}",
            "",
            f"*The paper:* {found.says}",
            "",
            f"**{found.verdict.value.capitalize()}.** {found.rule}",
            "",
            *_table(found.columns, found.rows),
            "",
            *(line for remark in found.reading for line in (remark, "")),
        ]
    return "\n".join(parts).rstrip() + "\n"


def as_json(cells: Sequence[Cell], findings: Sequence[Finding]) -> str:
    """Everything, the same for the same answers."""
    data: dict[str, Any] = {
        "cells": [
            {
                "student": cell.student,
                "task": cell.task,
                "policy": cell.subjects.policy.id,
                "teachers": cell.teachers,
                "controls": cell.controls,
                "questions": [question.id for question in cell.subjects.questions],
                "generations": [trajectory.id for trajectory in cell.trajectories],
                "correct": cell.correct,
                "rollouts": cell.rollouts,
            }
            for cell in cells
        ],
        "findings": [found.plain for found in findings],
    }
    return json.dumps(data, indent=1, ensure_ascii=False) + "\n"


def write(path: Path, text: str) -> None:
    """Write a file, its folder made if it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _table(columns: Sequence[str], rows: Sequence[Sequence[Value]]) -> list[str]:
    lines = [columns, ["---"] * len(columns), *([cell_text(v) for v in row] for row in rows)]
    return ["| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in lines]


def cell_text(value: Value) -> str:
    """A cell as it is read."""
    if value is None:
        return NOTHING
    if isinstance(value, Range):
        digits = 2 if max(abs(value.low), abs(value.high)) >= _SMALL else 3
        median, low, high = (f"{v:+.{digits}f}" for v in (value.median, value.low, value.high))
        return f"{median} ({low} to {high})"
    if isinstance(value, int):
        return count(value)
    return f"{value:.3g}" if isinstance(value, float) else value
