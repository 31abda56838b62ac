"""The held-out questions: ``python -m examples.word_problems.questions > questions.jsonl``."""

from __future__ import annotations

import json
import random
from pathlib import Path

from examples.word_problems.contexts import Row, make_row
from examples.word_problems.problems import Problem, draw_problem

PATH = Path(__file__).with_name("questions.jsonl")
"""The rows that ship."""
COUNT = 40
SEED = 2026


def held_out_problems() -> list[Problem]:
    """The held-out problems, in the order of :data:`PATH`; no two have the same numbers."""
    rng = random.Random(SEED)
    chosen: dict[tuple[object, ...], Problem] = {}
    while len(chosen) < COUNT:
        problem = draw_problem(rng)
        # A problem without a hard step would show nothing.
        if any(step.hard for step in problem.steps()):
            chosen.setdefault(problem.signature, problem)
    return list(chosen.values())


def held_out_signatures() -> frozenset[tuple[object, ...]]:
    """What training must not see."""
    return frozenset(problem.signature for problem in held_out_problems())


def held_out_rows() -> list[Row]:
    """The rows of :func:`held_out_problems`."""
    rng = random.Random(SEED + 1)
    return [make_row(problem, rng)[0] for problem in held_out_problems()]


def load_rows(path: Path = PATH) -> list[Row]:
    """Read rows from a JSON-lines file."""
    return [Row(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def main() -> None:
    """Write the rows to standard output."""
    for row in held_out_rows():
        print(json.dumps(vars(row)))


if __name__ == "__main__":
    main()
