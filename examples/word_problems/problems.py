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
LABELS = {1: ("then",), 2: ("first", "then"), 3: ("first", "then", "last")}
"""What introduces each event, by the number of events; a solution labels its steps likewise."""
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

    label: str
    """Which event it is about: a word of :data:`LABELS`, or ``bags``."""
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
        """The text: ``Ann has 14 figs. First she buys 7, then she loses 5. How many ...?``"""
        told = [
            f"{label} {self.pronoun} {event.verb} {event.amount}" for label, event in self.labelled
        ]
        changes = ", ".join(told).capitalize()
        if self.bags is None:
            opening = f"{self.name} has {self.start} {self.item}."
        else:
            opening = f"{self.name} has {self.bags} bags with {self.start} {self.item} each."
        ending = self.ending.format(items=self.item, pronoun=self.pronoun)
        return f"{opening} {changes}. {ending}"

    @property
    def labelled(self) -> list[tuple[str, Event]]:
        """The events with the words that introduce them."""
        return list(zip(LABELS[len(self.events)], self.events, strict=True))

    def steps(self, *, backwards: bool = False) -> list[Step]:
        """The right steps, with the events as told or ``backwards`` (bags always come first)."""
        steps = []
        value = self.start
        if self.bags is not None:
            steps.append(Step("bags", self.bags, "*", self.start))
            value = steps[-1].result
        for label, event in reversed(self.labelled) if backwards else self.labelled:
            steps.append(Step(label, value, event.operation, event.amount, event))
            value = steps[-1].result
        return steps

    @property
    def reversible(self) -> bool:
        """Whether there are two events and taking the second first keeps to 1..LARGEST."""
        results = [step.result for step in self.steps(backwards=True)]
        return len(self.events) == 2 and all(1 <= result <= LARGEST for result in results)

    @property
    def answer(self) -> int:
        """The right answer."""
        return self.steps()[-1].result


def draw_problem(rng: random.Random) -> Problem:
    """Draw a problem of two or three steps whose results all lie in 1..:data:`LARGEST`.

    No two of its numbers are the same, so that each can be told by its value.
    """
    length = rng.choice((2, 3))
    while True:
        bags = rng.randint(2, 5) if rng.random() < 0.3 else None
        verbs = rng.sample(GAINS + LOSSES, length if bags is None else length - 1)
        amounts = rng.sample(range(2, 10), len(verbs))
        problem = Problem(
            name=rng.choice(tuple(NAMES)),
            item=rng.choice(ITEMS),
            start=rng.randint(5, 30) if bags is None else rng.randint(2, 9),
            bags=bags,
            events=tuple(map(Event, verbs, amounts)),
            ending=rng.choice(ENDINGS),
        )
        numbers = [bags, problem.start, *amounts]
        distinct = len(set(numbers)) == len(numbers)
        if distinct and all(1 <= step.result <= LARGEST for step in problem.steps()):
            return problem


def training_problems(
    rng: random.Random, held_out: frozenset[tuple[object, ...]]
) -> Iterator[Problem]:
    """Draw problems without end, none with a signature in ``held_out``."""
    while True:
        problem = draw_problem(rng)
        if problem.signature not in held_out:
            yield problem
