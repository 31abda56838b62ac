"""Candidates and the tail bucket."""

from __future__ import annotations

import numpy as np
import pytest
from unmask_server.diagnosis import (
    TAIL_ID,
    Algorithm,
    Loss,
    Support,
    candidate_ids,
    covered_mass,
    descent,
    effective_support,
    ideal_gradient,
    with_tail,
)


def test_candidates_are_the_students_in_order_then_the_others_once_each() -> None:
    ids = candidate_ids(np.array([7, 3, 9]), [np.array([3, 1]), [9, 4]], 4)
    assert ids.tolist() == [7, 3, 9, 1, 4]
    assert ids.dtype == np.int32
    assert candidate_ids([7], [], 5).tolist() == [7, 5]
    assert candidate_ids([], [], None).shape == (0,)


def test_a_support_names_its_tail() -> None:
    support = Support(np.array([7, 3], dtype=np.int32))
    assert [support.index(token) for token in (7, 3, 5)] == [0, 1, support.tail]
    assert [support.token(i) for i in range(3)] == [7, 3, TAIL_ID]


def test_the_tail_takes_what_candidates_lack() -> None:
    np.testing.assert_allclose(
        with_tail([[0.5, 0.3], [0.2, 0.8]]), [[0.5, 0.3, 0.2], [0.2, 0.8, 0]]
    )
    # What is left of 1 by float32 rounding is no tail.
    assert with_tail([0.5, 0.5 - 1e-7])[-1] == 0.0
    assert with_tail([0.5, 0.5 + 1e-7])[-1] == 0.0


def test_effective_support_counts_tokens_in_play() -> None:
    assert effective_support([0.25] * 4 + [0.0]) == pytest.approx(4)
    assert effective_support([1.0, 0.0, 0.0]) == pytest.approx(1)
    # The tail is not one token.
    assert effective_support([0.25, 0.25, 0.5]) == pytest.approx(2)
    assert effective_support([0.0, 1.0]) == 0.0
    assert covered_mass([0.25, 0.25, 0.5]) == 0.5


def test_with_all_tokens_as_candidates_numbers_equal_the_dense_formula() -> None:
    rng = np.random.default_rng(0)
    p, t, s = rng.dirichlet(np.ones(50)), rng.dirichlet(np.ones(50)), rng.random(50)
    order = np.argsort(-p)
    tailed = with_tail(p[order]), with_tail(t[order])
    for loss in (Loss.FORWARD_KL, Loss.REVERSE_KL, Loss.JSD):
        dense = descent(Algorithm(loss), p, t)[order]
        np.testing.assert_allclose(descent(Algorithm(loss), *tailed)[:-1], dense, rtol=1e-13)
    ideal = ideal_gradient(tailed[0], np.append(s[order], 0.5))
    np.testing.assert_allclose(ideal[:-1], ideal_gradient(p, s)[order], rtol=1e-12, atol=1e-17)


def test_a_smaller_teacher_vocabulary_is_zero_on_the_rest() -> None:
    student, teacher = np.full(8, 1 / 8), np.append(np.full(6, 1 / 6), [0.0, 0.0])
    assert np.all(np.isfinite(descent(Algorithm(Loss.FORWARD_KL), student, teacher)))
    assert np.all(np.isfinite(descent(Algorithm(Loss.JSD), student, teacher)))
