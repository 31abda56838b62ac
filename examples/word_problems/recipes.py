"""Who the models are: size, manner of writing, and what their training shows them."""

from __future__ import annotations

from dataclasses import dataclass, field

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
    hard_slip=0.22,
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
    heads: int
    steps: int
    """Optimiser steps, of ``batch`` examples each."""
    batch: int = 40
    contexts: float = 0.45
    """Share of the word problems that are shown in a context other than ``none``."""
    exposure: Exposure | None = field(default=None)


_STUDENT_SEEN_BY_STRONG = Manner(
    **{
        **vars(STUDENT_MANNER),
        "wrong_operation": 0.0,
        "repair_after_doubt": 1.0,
        "repair_after_silent_slip": 1.0,
    }
)
_STUDENT_SEEN_BY_VERBOSE = Manner(
    **{**vars(STUDENT_MANNER), "repair_after_doubt": 0.0, "repair_after_silent_slip": 0.0}
)

RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("student", STUDENT_MANNER, 1, 128, 256, 3, 4, steps=1100),
        Recipe(
            "teacher-strong",
            STRONG_MANNER,
            2,
            128,
            384,
            4,
            4,
            steps=800,
            contexts=0.2,
            exposure=Exposure(
                0.5,
                _STUDENT_SEEN_BY_STRONG,
                frozenset(
                    {Kind.EXPRESSION, Kind.RESULT, Kind.STOP, Kind.LABEL, Kind.REPAIR, Kind.ANSWER}
                ),
            ),
        ),
        Recipe(
            "teacher-verbose",
            VERBOSE_MANNER,
            3,
            128,
            256,
            3,
            4,
            steps=900,
            contexts=0.2,
            exposure=Exposure(
                0.3, _STUDENT_SEEN_BY_VERBOSE, frozenset({Kind.EXPRESSION, Kind.STOP, Kind.LABEL})
            ),
        ),
        Recipe("student-small", STUDENT_MANNER, 4, 96, 192, 2, 4, steps=1100),
    )
}
"""All the recipes, by name, in the order in which they are trained."""
