"""Training examples as token ids with the positions that count towards the loss."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer

from examples.word_problems.contexts import CONTEXT_WEIGHTS, help_from, make_row, render
from examples.word_problems.problems import LABELS, LARGEST, Problem, Step, training_problems
from examples.word_problems.recipes import Recipe
from examples.word_problems.solutions import Kind, Piece, write_solution
from examples.word_problems.vocabulary import ASSISTANT, EOS, USER

IGNORED = -100
"""Label of a position that does not count (PyTorch's default)."""


@dataclass(frozen=True)
class Example:
    """Token ids and, beside each, the same id if it counts, else :data:`IGNORED`."""

    ids: list[int]
    labels: list[int]


class ExampleSource:
    """Draws a recipe's examples: word problems in contexts, and drills."""

    def __init__(
        self, recipe: Recipe, tokenizer: Tokenizer, held_out: frozenset[tuple[object, ...]]
    ) -> None:
        self._recipe = recipe
        self._tokenizer = tokenizer
        self._rng = random.Random(recipe.seed)
        self._problems: Iterator[Problem] = training_problems(self._rng, held_out)
        self._end: int = tokenizer.encode(EOS).ids[0]

    def draw(self, drills: float) -> Example:
        """Draw a drill with probability ``drills``, else a word problem."""
        return self._drill() if self._rng.random() < drills else self._word_problem()

    def _word_problem(self) -> Example:
        recipe, rng = self._recipe, self._rng
        problem = next(self._problems)
        row, backwards = make_row(problem, rng)
        context = "none"
        if rng.random() < recipe.contexts:
            context = rng.choices(tuple(CONTEXT_WEIGHTS), tuple(CONTEXT_WEIGHTS.values()))[0]
        help = help_from(context, problem, row, backwards, rng)
        manner, learned = recipe.manner, frozenset(Kind)
        if recipe.exposure is not None and rng.random() < recipe.exposure.share:
            manner, learned = recipe.exposure.manner, recipe.exposure.learned
        pieces = write_solution(problem, manner, rng, help)
        return self._encode(render(context, row), pieces, learned)

    def _drill(self) -> Example:
        """Practice without a story: sums to solve, or made-up results to copy from a context."""
        kind = self._rng.choices(("sums", "solution", "answer", "hint"), (4, 2, 3, 1))[0]
        rng = self._rng
        steps = [self._sum(label) for label in LABELS[3 if kind == "solution" else 2]]
        results = [step.result for step in steps]
        if kind == "solution":
            results = [rng.randint(1, LARGEST) for _ in steps]
        elif kind == "answer":
            results[-1] = rng.randint(1, LARGEST)
        elif kind == "hint":
            results[rng.randrange(len(steps))] = rng.randint(1, LARGEST)
        equations = [
            f"{step.expression} {result}." for step, result in zip(steps, results, strict=True)
        ]
        lines = [f"{step.label}, {line}" for step, line in zip(steps, equations, strict=True)]
        lines.append(f"#### {results[-1]}")
        sums = [f"{step.label} {step.expression.removesuffix(' =')}" for step in steps]
        asked = ", ".join(sums).capitalize()
        if kind == "solution":
            asked = f"A correct solution: {' '.join(lines)}"
        elif kind == "answer":
            asked += f"\nThe correct answer is {results[-1]}."
        elif kind == "hint":
            # The made-up equation, or a right one where chance made up the right result.
            wrong = (n for n, step in enumerate(steps) if step.result != results[n])
            asked += f"\nHint: {equations[next(wrong, 0)]}"
        pieces = [Piece(line, Kind.RESULT) for line in lines]
        return self._encode(asked, pieces, frozenset(Kind))

    def _sum(self, label: str) -> Step:
        while True:
            if self._rng.random() < 0.1:
                return Step(label, self._rng.randint(2, 5), "*", self._rng.randint(2, 9))
            left = self._rng.randint(1, LARGEST)
            step = Step(label, left, self._rng.choice("+-"), self._rng.randint(2, 9))
            if 1 <= step.result <= LARGEST:
                return step

    def _encode(self, content: str, pieces: list[Piece], learned: frozenset[Kind]) -> Example:
        ids = self._tokenizer.encode(USER + content + ASSISTANT).ids
        labels = [IGNORED] * len(ids)
        for piece in pieces:
            piece_ids = self._tokenizer.encode(piece.text).ids
            ids += piece_ids
            labels += piece_ids if piece.kind in learned else [IGNORED] * len(piece_ids)
        ends = Kind.ANSWER in learned
        return Example([*ids, self._end], [*labels, self._end if ends else IGNORED])


def collate(examples: list[Example], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad examples on the right: ids and labels, both int64 (batch, longest).

    Causal attention keeps padding on the right from every position that counts, so no mask.
    """
    longest = max(len(example.ids) for example in examples)
    ids = torch.full((len(examples), longest), pad)
    labels = torch.full((len(examples), longest), IGNORED)
    for row, example in enumerate(examples):
        ids[row, : len(example.ids)] = torch.tensor(example.ids)
        labels[row, : len(example.labels)] = torch.tensor(example.labels)
    return ids, labels
