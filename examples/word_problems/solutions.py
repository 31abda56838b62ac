"""Worked solutions, the manners of writing them, and how they go wrong.

A solution is a list of :class:`Piece`, text with a *kind*; the kinds let a recipe choose which
pieces a model learns to write and which it only learns to read.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from examples.word_problems.problems import LARGEST, Problem, Step

OPENERS = ("ok,", "well,", "let us see.")
CONCLUSIONS = ("so", "the answer is")
# Near misses are the likeliest; the last two forget a carry or a borrow.
SLIPS = (-1, 1, -2, 2, -10, 10)
SLIP_WEIGHTS = (8, 8, 3, 3, 2, 2)


class Kind(StrEnum):
    """What a piece of a solution is."""

    STYLE = "style"
    """Openers, the naming of an event, words before ``####``: they carry no result."""
    LABEL = "label"
    """``first,``: which event the step is about."""
    EXPRESSION = "expression"
    """``14 + 7 =``, with the right operation."""
    BAD_EXPRESSION = "bad_expression"
    """``14 - 7 =`` where 7 was to be added."""
    DOUBT = "doubt"
    """``hmm`` in front of a result."""
    RESULT = "result"
    """The right result of the expression as written."""
    SLIP = "slip"
    """A wrong result."""
    STOP = "stop"
    """The full stop of a step."""
    REPAIR = "repair"
    """``wait,``: the step is said again."""
    ANSWER = "answer"
    """``#### 18`` and the end of the turn."""


@dataclass(frozen=True)
class Piece:
    """A stretch of text and what it is."""

    text: str
    kind: Kind


@dataclass(frozen=True)
class Manner:
    """How somebody writes solutions. All fields are probabilities in [0, 1]."""

    opener: float = 0.0
    verbose: float = 0.0
    """Chance that a solution names its events: ``first, she buys 7, so 14 + 7 = 21.``"""
    backwards: float = 0.0
    conclusion: float = 0.0
    """Chance of words in front of ``####``."""
    hard_slip: float = 0.0
    """Chance of a wrong result where the step carries or borrows."""
    easy_slip: float = 0.0
    """Chance of a wrong result elsewhere."""
    wrong_operation: float = 0.0
    doubt_on_slip: float = 0.0
    doubt_on_right: float = 0.0
    repair_after_doubt: float = 0.0
    """Chance of ``wait`` after a doubtful result, right or wrong."""
    repair_after_silent_slip: float = 0.0


@dataclass(frozen=True)
class Help:
    """What a context does for the one who writes: it makes slips rarer and repairs likelier."""

    scale: float = 1.0
    """Factor on the chances of slips and wrong operations."""
    known: frozenset[tuple[int, str, int]] = frozenset()
    """Steps whose result was shown."""
    known_scale: float = 1.0
    """Factor, instead of ``scale``, for the known steps."""
    repair_known: float = 0.0
    """Least chance of repairing a slip at a known step."""
    answer: int | None = None
    """The answer, if it was shown."""
    answer_used: float = 0.0
    """Chance that the last result, and then ``####``, is the shown answer, whatever came before."""
    backwards: bool | None = None
    """The order of the events, if the context fixes it."""


@dataclass
class _Writer:
    """Writes one solution."""

    manner: Manner
    help: Help
    rng: random.Random
    pieces: list[Piece] = field(default_factory=list)

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def put(self, text: str, kind: Kind) -> None:
        self.pieces.append(Piece(text, kind))

    def step(self, right: Step, last: bool) -> int:
        """Write a step that should be ``right``; returns the value that stands at its end."""
        shown = (right.left, right.operation, right.right) in self.help.known
        scale = self.help.known_scale if shown else self.help.scale
        step = right
        if right.event and self.chance(self.manner.wrong_operation * scale):
            other = "-" if right.operation == "+" else "+"
            flipped = replace(right, operation=other)
            if 1 <= flipped.result <= LARGEST:
                step = flipped
        self.put(step.expression, Kind.EXPRESSION if step is right else Kind.BAD_EXPRESSION)
        if last and self.help.answer is not None and self.chance(self.help.answer_used):
            self.put(str(self.help.answer), Kind.RESULT)
            self.put(".", Kind.STOP)
            return self.help.answer
        slip_chance = self.manner.hard_slip if step.hard else self.manner.easy_slip
        value = self.slipped(step.result) if self.chance(slip_chance * scale) else step.result
        wrong = value != step.result
        doubt = self.chance(self.manner.doubt_on_slip if wrong else self.manner.doubt_on_right)
        if doubt:
            self.put("hmm", Kind.DOUBT)
        self.put(str(value), Kind.SLIP if wrong else Kind.RESULT)
        self.put(".", Kind.STOP)
        repair = 0.0
        if doubt:
            repair = self.manner.repair_after_doubt
        elif wrong:
            repair = self.manner.repair_after_silent_slip
        if shown and wrong:
            repair = max(repair, self.help.repair_known)
        if self.chance(repair):
            self.put("wait,", Kind.REPAIR)
            self.put(step.expression, Kind.EXPRESSION if step is right else Kind.BAD_EXPRESSION)
            self.put(str(step.result), Kind.RESULT)
            self.put(".", Kind.STOP)
            value = step.result
        return value

    def slipped(self, result: int) -> int:
        """A wrong result in 1..LARGEST."""
        while True:
            wrong = result + self.rng.choices(SLIPS, SLIP_WEIGHTS)[0]
            if 1 <= wrong <= LARGEST:
                return wrong


def _feasible(step: Step) -> bool:
    return 1 <= step.result <= LARGEST


def write_solution(
    problem: Problem, manner: Manner, rng: random.Random, help: Help | None = None
) -> list[Piece]:
    """Write a solution in a manner; slips carry on into the later steps.

    Where a slip would take a later step out of 1..LARGEST, the solution is begun again.
    """
    while True:
        pieces = _attempt(problem, _Writer(manner, help or Help(), rng))
        if pieces is not None:
            return pieces


def _attempt(problem: Problem, writer: _Writer) -> list[Piece] | None:
    manner, chance = writer.manner, writer.chance
    backwards = writer.help.backwards
    if backwards is None:
        backwards = problem.reversible and chance(manner.backwards)
    if chance(manner.opener):
        writer.put(writer.rng.choice(OPENERS), Kind.STYLE)
    verbose = chance(manner.verbose)
    planned = problem.steps(backwards=backwards)
    value = planned[0].left
    for index, plan in enumerate(planned):
        step = replace(plan, left=value)
        if not _feasible(step):
            return None
        writer.put(f"{step.label},", Kind.LABEL)
        if verbose:
            writer.put(_phrase(problem, step), Kind.STYLE)
        value = writer.step(step, last=index == len(planned) - 1)
    if chance(manner.conclusion):
        writer.put(writer.rng.choice(CONCLUSIONS), Kind.STYLE)
    if writer.help.answer is not None and chance(writer.help.answer_used):
        value = writer.help.answer
    writer.put(f"#### {value}", Kind.ANSWER)
    return writer.pieces


def _phrase(problem: Problem, step: Step) -> str:
    if step.event is None:
        return f"{problem.bags} bags with {problem.start} each, so"
    return f"{problem.pronoun} {step.event.verb} {step.event.amount}, so"


def text_of(pieces: Sequence[Piece]) -> str:
    """The solution as a person would type it: no space before a full stop, capitals after it."""
    text = " ".join(piece.text for piece in pieces).replace(" .", ".")
    return ". ".join(sentence[:1].upper() + sentence[1:] for sentence in text.split(". "))


def final_answer(pieces: Sequence[Piece]) -> int:
    """The number after ``####``."""
    return int(pieces[-1].text.split()[-1])
