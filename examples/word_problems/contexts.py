"""Question rows and the contexts in which a model meets them.

A context is a Jinja template over a row's fields; these are the server's built-in ones, word for
word. How much a context helps the writer of a training solution is set here, in :func:`help_from`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from jinja2 import Environment, StrictUndefined

from examples.word_problems.problems import Problem
from examples.word_problems.solutions import Help, Manner, final_answer, text_of, write_solution

CONTEXTS = {
    "none": "{{ question }}",
    "answer": "{{ question }}\nThe correct answer is {{ answer }}.",
    "hint": "{{ question }}\nHint: {{ hint }}",
    "solution": "{{ question }}\nA correct solution: {{ solution }}",
    "wrong_solution": "{{ question }}\nA wrong attempt: {{ wrong_solution }}",
    "contrastive": (
        "{{ question }}\nA correct solution: {{ solution }}\nA wrong attempt: {{ wrong_solution }}"
    ),
}
"""Templates of the content of the one user message, by name."""

CONTEXT_WEIGHTS = {"answer": 6, "hint": 3, "solution": 5, "wrong_solution": 3, "contrastive": 3}
"""How often training shows each context, relative to the others."""

_ENVIRONMENT = Environment(undefined=StrictUndefined, autoescape=False)
_TEMPLATES = {name: _ENVIRONMENT.from_string(source) for name, source in CONTEXTS.items()}

REFERENCE = Manner(backwards=0.3, conclusion=0.5)
"""Writes the ``solution`` field."""
MISTAKEN = Manner(backwards=0.3, conclusion=0.5, hard_slip=0.6, easy_slip=0.15, wrong_operation=0.1)
"""Writes the ``wrong_solution`` field (drawn again until it is wrong)."""


@dataclass(frozen=True)
class Row:
    """A question with everything that a context may show; field names as in the JSON rows."""

    question: str
    answer: str
    hint: str
    solution: str
    summary: str
    """The solution's sums alone: what it comes to, without how it is told."""
    wrong_solution: str


def make_row(problem: Problem, rng: random.Random) -> tuple[Row, bool]:
    """Write a problem's row; also says whether its ``solution`` takes the events backwards.

    The hint is the result of the step that is easiest to get wrong: ``14 + 7 = 21.``
    """
    backwards = problem.reversible and rng.random() < REFERENCE.backwards
    order = Help(backwards=backwards)
    wrong = write_solution(problem, MISTAKEN, rng)
    while final_answer(wrong) == problem.answer:
        wrong = write_solution(problem, MISTAKEN, rng)
    steps = problem.steps(backwards=backwards)
    hinted = max(steps, key=lambda step: (step.hard, step.result))
    sums = [f"{step.expression} {step.result}." for step in steps]
    row = Row(
        question=problem.question,
        answer=str(problem.answer),
        hint=f"{hinted.expression} {hinted.result}.",
        summary=" ".join([*sums, f"#### {problem.answer}"]),
        solution=text_of(write_solution(problem, REFERENCE, rng, order)),
        wrong_solution=text_of(wrong),
    )
    return row, backwards


def render(context: str, row: Row) -> str:
    """The content of the user message that shows ``row`` in a context."""
    return _TEMPLATES[context].render(vars(row))


def help_from(
    context: str, problem: Problem, row: Row, backwards: bool, rng: random.Random
) -> Help:
    """What a context does for the writer of a training solution.

    ``backwards`` is the order of the row's solution; a writer who is shown it, or a step of it,
    mostly keeps that order.
    """
    steps = problem.steps(backwards=backwards)
    order = backwards if rng.random() < 0.8 else None
    if context == "none":
        return Help()
    if context == "answer":
        return Help(scale=0.6, answer=problem.answer, answer_used=0.9)
    if context == "hint":
        known = frozenset(
            (step.left, step.operation, step.right)
            for step in steps
            if row.hint == f"{step.expression} {step.result}."
        )
        return Help(scale=0.8, known=known, known_scale=0.1, repair_known=0.9, backwards=order)
    if context == "wrong_solution":
        return Help(scale=0.7)
    known = frozenset((step.left, step.operation, step.right) for step in steps)
    return Help(scale=0.3, known=known, known_scale=0.2, repair_known=0.9, backwards=order)
