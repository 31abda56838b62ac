"""Control teachers, and what they show for free."""

from __future__ import annotations

import numpy as np
import pytest
from unmask_server.diagnosis import (
    Algorithm,
    Loss,
    descent,
    entropy,
    ideal_gradient,
    permuted,
    tempered,
)

P = np.array([0.5, 0.25, 0.15, 0.1, 0.0])


@pytest.mark.parametrize("target", [0.05, 0.5, 1.0, 1.3, 1.386])
def test_the_student_takes_any_entropy_it_can_reach(target: float) -> None:
    control = tempered(P, target)
    assert entropy(control) == pytest.approx(target, abs=1e-9)
    assert control.sum() == pytest.approx(1)
    assert control[4] == 0.0
    exponents = np.log(control[1:4] / control[0]) / np.log(P[1:4] / P[0])
    np.testing.assert_allclose(exponents, exponents[0])


def test_its_own_entropy_gives_the_student_back() -> None:
    np.testing.assert_allclose(tempered(P, entropy(P)), P, atol=1e-9)


def test_out_of_reach_the_nearest_is_taken() -> None:
    np.testing.assert_allclose(tempered(P, 5.0), [0.25] * 4 + [0.0])
    np.testing.assert_allclose(tempered(P, 0.0), [1, 0, 0, 0, 0], atol=1e-12)
    ties = np.array([0.4, 0.4, 0.2, 0.0])
    np.testing.assert_allclose(tempered(ties, 0.1), [0.5, 0.5, 0, 0], atol=1e-9)
    np.testing.assert_allclose(tempered([1.0, 0.0], 0.3), [1.0, 0.0])
    assert entropy([1.0, 0.0]) == 0.0


def test_permuting_keeps_the_ratios_of_a_block() -> None:
    rng = np.random.default_rng(0)
    p, t = np.append(rng.dirichlet(np.ones(12)), 0.0), np.append(rng.dirichlet(np.ones(12)), 0.0)
    control = permuted(p, t, seed=3)
    assert control.sum() == pytest.approx(1)
    order = np.argsort(-p[:-1])
    scale = 0.0
    for block in np.split(order, [4, 8]):
        ratios = np.sort(control[block] / p[block]) / np.sort(t[block] / p[block])
        np.testing.assert_allclose(ratios, ratios[0])
        scale = scale or ratios[0]
        assert ratios[0] == pytest.approx(scale)
    assert not np.allclose(control, t)
    np.testing.assert_array_equal(control, permuted(p, t, seed=3))
    assert not np.array_equal(control, permuted(p, t, seed=4))


def test_permuting_leaves_zeros_and_the_tail_alone() -> None:
    p, t = np.array([0.6, 0.2, 0.1, 0.0, 0.1]), np.array([0.2, 0.5, 0.0, 0.2, 0.1])
    control = permuted(p, t, seed=1)
    assert np.all(np.isfinite(control))
    assert control.sum() == pytest.approx(1)
    assert control[3] / control[4] == pytest.approx(2)
    alone = permuted([1.0, 0.0], [1.0, 0.0], seed=1)
    np.testing.assert_allclose(alone, [1.0, 0.0])


def test_flatter_and_sharper_teachers_show_a_gap_that_knows_nothing_of_success() -> None:
    """Selecting by the outcome of the drawn token is enough."""
    rng = np.random.default_rng(0)
    size = 4000
    p = rng.dirichlet(np.ones(8), size)
    s = np.clip(rng.random((size, 1)) + rng.normal(0, 0.3, (size, 8)), 0, 1)
    g = ideal_gradient(p, s)
    token = np.array([rng.choice(8, p=row) for row in p])
    correct = rng.random(size) < s[np.arange(size), token]
    for exponent, sign in ((0.5, -1), (1.5, 1)):
        t = p**exponent / np.sum(p**exponent, axis=1, keepdims=True)
        d = descent(Algorithm(Loss.REVERSE_KL), p, t)
        norms = np.linalg.norm(g, axis=1) * np.linalg.norm(d, axis=1)
        cosine = np.sum(g * d, axis=1) / np.maximum(norms, 1e-300)
        gap = cosine[correct].mean() - cosine[~correct].mean()
        assert sign * gap > 0.1
