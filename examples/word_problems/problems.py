"""The questions: a start, one to three events, and "how many?".

Every number is a whole number in 1..:data:`LARGEST`, so that each is one token.
"""

from __future__ import annotations

import operator
import random
from collections.abc import Iterator
from dataclasses import dataclass

LARGEST = 50
"""Largest number that any question, step or slip contains."""

NAMES = {
    "Ann": "she",
    "Eva": "she",
    "Mia": "she",
    "Zoe": "she",
    "Ben": "he",
    "Leo": "he",
    "Max": "he",
    "Tom": "he",
}
"""Names and their pronouns."""

ITEMS = ("apples", "buns", "eggs", "figs", "limes", "nuts", "pears", "plums")
GAINS = ("buys", "finds", "gets", "picks")
LOSSES = ("drops", "eats", "loses", "sells")
ENDINGS = (
    "How many {items} does {pronoun} have now?",
    "How many {items} are left?",
    "How many {items} is that in all?",
)
OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul}


@dataclass(frozen=True)
class Event:
    """Something that changes the number of items: ``buys 7`` or ``loses 5``."""

    verb: str
    amount: int

    @property
    def operation(self) -> str:
        """``+`` for a gain, ``-`` for a loss."""
        return "+" if self.verb in GAINS else "-"


@dataclass(frozen=True)
class Step:
    """One line of arithmetic, ``left operation right``; ``event`` is None for the bags."""

    left: int
    operation: str
    right: int
    event: Event | None = None

    @property
    def result(self) -> int:
        """The right result."""
        return int(OPERATIONS[self.operation](self.left, self.right))

    @property
    def hard(self) -> bool:
        """Whether the step carries or borrows, or is a product above ten."""
        if self.operation == "*":
            return self.result > 10
        units = int(OPERATIONS[self.operation](self.left % 10, self.right % 10))
        return not 0 <= units < 10

    @property
    def expression(self) -> str:
        """The step up to and with the equals sign."""
        return f"{self.left} {self.operation} {self.right} ="


@dataclass(frozen=True)
class Problem:
    """A question: ``name`` has ``start`` items, or ``bags`` bags of ``start``; then the events."""

    name: str
    item: str
    start: int
    bags: int | None
    events: tuple[Event, ...]
    ending: str

    @property
    def pronoun(self) -> str:
        """``she`` or ``he``."""
        return NAMES[self.name]

    @property
    def signature(self) -> tuple[object, ...]:
        """The numbers and operations alone: problems that differ only in words share it."""
        changes = tuple((event.operation, event.amount) for event in self.events)
        return (self.bags, self.start, changes)

    @property
    def question(self) -> str:
        """The text, for instance ``Ann has 14 figs. She buys 7 and then loses 5. How ...?``."""
        told = [f"{event.verb} {event.amount}" for event in self.events]
        if len(told) == 1:
            changes = told[0]
        elif len(told) == 2:
            changes = " and then ".join(told)
        else:
            changes = ", ".join(told[:-1]) + " and " + told[-1]
        if self.bags is None:
            opening = f"{self.name} has {self.start} {self.item}."
        else:
            opening = f"{self.name} has {self.bags} bags with {self.start} {self.item} each."
        ending = self.ending.format(items=self.item, pronoun=self.pronoun)
        return f"{opening} {self.pronoun.capitalize()} {changes}. {ending}"

    def steps(self, *, backwards: bool = False) -> list[Step]:
        """The right steps, with the events as told or ``backwards`` (bags always come first)."""
        steps = []
        value = self.start
        if self.bags is not None:
            steps.append(Step(self.bags, "*", self.start))
            value = steps[-1].result
        for event in reversed(self.events) if backwards else self.events:
            steps.append(Step(value, event.operation, event.amount, event))
            value = steps[-1].result
        return steps

    @property
    def reversible(self) -> bool:
        """Whether the events taken backwards differ and keep every result in 1..LARGEST."""
        results = [step.result for step in self.steps(backwards=True)]
        return len(self.events) > 1 and all(1 <= result <= LARGEST for result in results)

    @property
    def answer(self) -> int:
        """The right answer."""
        return self.steps()[-1].result


def draw_problem(rng: random.Random) -> Problem:
    """Draw a problem of two or three steps whose results all lie in 1..:data:`LARGEST`."""
    length = rng.choice((2, 3))
    while True:
        bags = rng.randint(2, 5) if rng.random() < 0.3 else None
        verbs = rng.sample(GAINS + LOSSES, length if bags is None else length - 1)
        problem = Problem(
            name=rng.choice(tuple(NAMES)),
            item=rng.choice(ITEMS),
            start=rng.randint(5, 30) if bags is None else rng.randint(2, 9),
            bags=bags,
            events=tuple(Event(verb, rng.randint(2, 9)) for verb in verbs),
            ending=rng.choice(ENDINGS),
        )
        if all(1 <= step.result <= LARGEST for step in problem.steps()):
            return problem


def training_problems(
    rng: random.Random, held_out: frozenset[tuple[object, ...]]
) -> Iterator[Problem]:
    """Draw problems without end, none with a signature in ``held_out``."""
    while True:
        problem = draw_problem(rng)
        if problem.signature not in held_out:
            yield problem
