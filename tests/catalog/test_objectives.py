"""Weighted sums of verifiers, and verifiers that need no answer."""

from __future__ import annotations

import itertools
import math

import pytest
from sqlalchemy import Engine
from unmask_server.catalog import Catalog
from unmask_server.catalog.errors import InvalidArgument
from unmask_server.catalog.objectives import MAX_TERMS, objective_options
from unmask_server.catalog.types import Verifier, VerifierKind
from unmask_server.catalog.verifiers import Grader
from unmask_server.engines.base import FinishReason


def made(name: str, kind: VerifierKind = VerifierKind.BOXED, *terms: tuple[Verifier, float],
         **options: str) -> Verifier:  # fmt: skip
    return Verifier(f"ver-{name}", 1, name, kind, 1, options, 0.0, terms)


A, B, C = made("a"), made("b"), made("c")


def test_the_same_sum_is_the_same_options() -> None:
    one = objective_options([(A, 1.0), (B, -0.5)], "f")
    assert one == {"ver-a": "1.0", "ver-b": "-0.5"}
    assert list(one) == sorted(one)
    assert objective_options([(B, -0.5), (C, 0.0), (A, 1.0)], "f") == one
    inner = made("sum", VerifierKind.OBJECTIVE, (A, 0.5), (B, -0.25))
    assert objective_options([(inner, 2.0)], "f") == one
    assert objective_options([(inner, 2.0), (B, 0.5)], "f") == {"ver-a": "1.0"}


@pytest.mark.parametrize(
    "terms",
    [
        [],
        [(A, 0.0)],
        [(A, math.nan)],
        [(A, math.inf)],
        [(A, -math.inf)],
        [(A, 1e7)],
        [(A, 1e-7)],
        [(A, 1.0), (A, 2.0)],
        [(made(str(i)), 1.0) for i in range(MAX_TERMS + 1)],
    ],
)
def test_what_is_no_sum_is_refused(terms: list[tuple[Verifier, float]]) -> None:
    with pytest.raises(InvalidArgument):
        objective_options(terms, "f")


def test_a_reward_and_the_units_give_the_weighted_sum_back() -> None:
    weights = (1.0, -0.3, 0.25)
    found = made("sum", VerifierKind.OBJECTIVE, *zip((A, B, C), weights, strict=True))
    assert (found.scale, found.offset) == (pytest.approx(1.55), pytest.approx(-0.3))
    rewards = []
    for row in itertools.product((0.0, 0.3, 1.0), repeat=3):
        reward = found.weighed(row)
        rewards.append(reward)
        total = sum(w * x for w, x in zip(weights, row, strict=True))
        assert found.offset + found.scale * reward == pytest.approx(total)
    assert (min(rewards), max(rewards)) == (0.0, 1.0)
    assert (A.scale, A.offset) == (1.0, 0.0)


def test_what_needs_a_clients_number_is_known() -> None:
    number = made("x", VerifierKind.EXTERNAL, source="rm")
    assert number.externals == (number,)
    assert made("sum", VerifierKind.OBJECTIVE, (A, 1.0), (number, 1.0)).externals == (number,)
    assert A.externals == ()


@pytest.mark.parametrize(
    ("pattern", "text", "reward"),
    [
        (r"####", "so #### 7", 1.0),
        (r"####", "so 7", 0.0),
        (r"(?s)\A<think>.*</think>.*\z", "<think>\n1\n</think>\n7", 1.0),
        (r"(?s)\A<think>.*</think>.*\z", "1 <think></think>", 0.0),
        (r"^\d+$", "a\n7", 0.0),
        (r"(?m)^\d+$", "a\n7", 1.0),
    ],
)
def test_a_format_occurs_or_not_whatever_the_answer(
    grader: Grader, pattern: str, text: str, reward: float
) -> None:
    shape = made("f", VerifierKind.FORMAT, pattern=pattern)
    items = [(text, "", FinishReason.STOP), (text, "7", FinishReason.LENGTH)]
    assert grader.grade_many(shape, items) == [reward, 0.0]
    either = made("f", VerifierKind.FORMAT, pattern=pattern, truncated="grade")
    assert grader.grade_many(either, items) == [reward, reward]


def test_an_objective_is_found_again_with_its_terms(
    catalog: Catalog, database: Engine, grader: Grader
) -> None:
    long = catalog.register_verifier(VerifierKind.LENGTH, {"limit": "8"}, "long")
    right = catalog.get_verifier("last_number")
    found = catalog.objective([(long, -0.5), (right, 1.0)], "objective")
    assert catalog.objective([(right, 1.0), (long, -0.5)], "objective").id == found.id
    named = catalog.register_verifier(
        VerifierKind.OBJECTIVE, {"long": "-.5", "last_number": "1e0"}, "both"
    )
    assert named.id == found.id
    again = Catalog(database, grader)
    for one in (again.get_verifier("both"), again.verifier_by_key(found.key)):
        assert {part.id: weight for part, weight in one.terms} == {right.id: 1.0, long.id: -0.5}
        assert (one.scale, one.offset) == (1.5, -0.5)
    # Of one verifier with weight 1 it is that verifier.
    assert again.objective([(long, 1.0)], "objective").id == long.id
