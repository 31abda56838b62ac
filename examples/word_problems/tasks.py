"""Two tasks of 32 questions: ``python -m examples.word_problems.tasks > tasks.jsonl``.

The tasks are kinds of problems: `bags` begin with a product, `events` are sums and differences.
Each has the held-out questions of its kind, and others that no shipped model was trained on: all
that training draws is drawn again (it takes a minute), and what it holds is left out.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from examples.word_problems.contexts import Row, make_row
from examples.word_problems.data import Example, ExampleSource
from examples.word_problems.problems import Problem, draw_problem
from examples.word_problems.questions import (
    SEED,
    held_out_problems,
    held_out_rows,
    held_out_signatures,
)
from examples.word_problems.recipes import RECIPES, Recipe
from examples.word_problems.train import draw_pools
from examples.word_problems.vocabulary import build_tokenizer

PATH = Path(__file__).with_name("tasks.jsonl")
"""The rows that ship."""
TASKS = ("bags", "events")
PER_TASK = 32

Signature = tuple[object, ...]


def task_of(problem: Problem) -> str:
    """Which of :data:`TASKS` a problem belongs to."""
    return "events" if problem.bags is None else "bags"


class Replay(ExampleSource):
    """Draws a recipe's examples as training does, and keeps only which problems they show."""

    def __init__(self, recipe: Recipe, tokenizer: Tokenizer) -> None:
        super().__init__(recipe, tokenizer, held_out_signatures())
        self.signatures: set[Signature] = set()
        self._problems = self._noted(self._problems)

    def _noted(self, problems: Iterator[Problem]) -> Iterator[Problem]:
        for problem in problems:
            self.signatures.add(problem.signature)
            yield problem

    def _encode(self, *_: Any) -> Example:
        return Example([], [])


def trained_signatures() -> frozenset[Signature]:
    """The numbers and operations of every problem that any shipped model was trained on."""
    tokenizer = build_tokenizer().backend_tokenizer
    found: set[Signature] = set()
    for recipe in RECIPES.values():
        source = Replay(recipe, tokenizer)
        for _ in draw_pools(source, recipe):
            pass
        found |= source.signatures
    return frozenset(found)


def task_rows(trained: frozenset[Signature]) -> list[dict[str, str]]:
    """The rows of both tasks: `task` and the fields of a row; first the held-out questions."""
    rows: dict[str, list[dict[str, str]]] = {task: [] for task in TASKS}
    used = set(trained)
    for problem, row in zip(held_out_problems(), held_out_rows(), strict=True):
        rows[task_of(problem)].append(vars(row))
        used.add(problem.signature)
    rng = random.Random(SEED + 2)
    while any(len(found) < PER_TASK for found in rows.values()):
        problem = draw_problem(rng)
        found = rows[task_of(problem)]
        # As for the held-out questions: without a hard step it would show nothing.
        hard = any(step.hard for step in problem.steps())
        if hard and len(found) < PER_TASK and problem.signature not in used:
            used.add(problem.signature)
            found.append(vars(make_row(problem, rng)[0]))
    return [{"task": task, **row} for task in TASKS for row in rows[task]]


def load_task(task: str, path: Path = PATH) -> list[Row]:
    """The rows of one task that ship."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [Row(**row) for row in rows if row.pop("task") == task]


def main() -> None:
    """Write the rows to standard output."""
    for row in task_rows(trained_signatures()):
        print(json.dumps(row))


if __name__ == "__main__":
    main()
