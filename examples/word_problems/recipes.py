"""Who the models are: size, manner of writing, and what their training shows them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from examples.word_problems.solutions import Kind, Manner

STUDENT_MANNER = Manner(
    opener=0.5,
    verbose=0.4,
    backwards=0.35,
    conclusion=0.6,
    hard_slip=0.5,
    easy_slip=0.08,
    wrong_operation=0.05,
    doubt_on_slip=0.75,
    doubt_on_right=0.10,
    repair_after_doubt=0.4,
    repair_after_silent_slip=0.05,
)
STRONG_MANNER = Manner(conclusion=0.1, hard_slip=0.01)
VERBOSE_MANNER = Manner(
    opener=0.9,
    verbose=1.0,
    backwards=0.6,
    conclusion=1.0,
    hard_slip=0.2,
    easy_slip=0.03,
    wrong_operation=0.03,
)


@dataclass(frozen=True)
class Exposure:
    """Solutions in another's manner that a model reads, learning to write only some pieces.

    A teacher scores a student's text; without this it would never have seen one.
    """

    share: float
    """Share of its word problems, in [0, 1]."""
    manner: Manner
    learned: frozenset[Kind]


@dataclass(frozen=True)
class Recipe:
    """How a model is made. Sizes are those of a Llama decoder with tied embeddings."""

    name: str
    manner: Manner
    seed: int
    hidden: int
    intermediate: int
    layers: int
    steps: int
    """Optimiser steps, of ``batch`` examples each."""
    heads: int = 4
    batch: int = 40
    contexts: float = 0.45
    """Share of the word problems that are shown in a context other than ``none``."""
    exposure: Exposure | None = None


_STUDENT_SEEN_BY_STRONG = replace(
    STUDENT_MANNER, wrong_operation=0.0, repair_after_doubt=1.0, repair_after_silent_slip=1.0
)
_STUDENT_SEEN_BY_VERBOSE = replace(
    STUDENT_MANNER, repair_after_doubt=0.0, repair_after_silent_slip=0.0
)

RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="student",
            manner=STUDENT_MANNER,
            seed=1,
            hidden=128,
            intermediate=256,
            layers=3,
            steps=1100,
        ),
        Recipe(
            name="teacher-strong",
            manner=STRONG_MANNER,
            seed=2,
            hidden=128,
            intermediate=384,
            layers=4,
            steps=700,
            contexts=0.2,
            exposure=Exposure(
                share=0.5,
                manner=_STUDENT_SEEN_BY_STRONG,
                learned=frozenset(Kind) - {Kind.STYLE, Kind.DOUBT, Kind.SLIP, Kind.BAD_EXPRESSION},
            ),
        ),
        Recipe(
            name="teacher-verbose",
            manner=VERBOSE_MANNER,
            seed=3,
            hidden=128,
            intermediate=256,
            layers=3,
            steps=1100,
            contexts=0.2,
            exposure=Exposure(
                share=0.3,
                manner=_STUDENT_SEEN_BY_VERBOSE,
                learned=frozenset({Kind.EXPRESSION, Kind.RESULT, Kind.STOP, Kind.LABEL}),
            ),
        ),
        Recipe(
            name="student-small",
            manner=STUDENT_MANNER,
            seed=4,
            hidden=96,
            intermediate=192,
            layers=2,
            heads=3,
            steps=900,
        ),
    )
}
"""All the recipes, by name, in the order in which they are trained."""
