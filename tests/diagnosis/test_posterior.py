"""What counted outcomes say about success."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from unmask_server.diagnosis import (
    Counts,
    HierarchicalPosterior,
    JeffreysPosterior,
    NodePosterior,
    SuccessPosterior,
    ideal_gradient,
)
from unmask_server.diagnosis.node import gradient_variance

from tests.diagnosis.making import counts

MODELS = [HierarchicalPosterior(), JeffreysPosterior()]
P = np.array([0.5, 0.3, 0.15, 0.05])


@pytest.mark.parametrize("model", MODELS)
def test_the_same_inputs_give_the_same_bytes(model: SuccessPosterior) -> None:
    found = counts([10, 3, 0, 1], [4, 2, 0, 1])
    once, again = (model.draws(found, P, seed=5) for _ in range(2))
    assert once.tobytes() == again.tobytes()
    assert once.shape == (1000, 4)
    assert model.draws(found, P, seed=6).tobytes() != once.tobytes()


def test_draws_are_the_same_in_every_process() -> None:
    drawn = HierarchicalPosterior().draws(counts([10, 3, 0, 1], [4, 2, 0, 1]), P, seed=5, size=8)
    # Rounded, so that the last bit of another platform's logarithm does not count.
    digest = hashlib.sha256(np.round(drawn, 6).tobytes()).hexdigest()
    assert digest[:16] == "de1c9d648d7efab9"


@pytest.mark.parametrize("model", MODELS)
def test_exact_outcomes_have_no_spread_and_teach_nothing_about_others(
    model: SuccessPosterior,
) -> None:
    drawn = model.draws(
        counts([1, 40, 40, 0], [0, 30, 32, 0], [True, False, False, False]), P, seed=1
    )
    assert np.all(drawn[:, 0] == 0.0)
    without = model.draws(counts([0, 40, 40, 0], [0, 30, 32, 0]), P, seed=1)
    assert drawn[:, 3].mean() == pytest.approx(without[:, 3].mean(), abs=0.03)


@pytest.mark.parametrize("model", MODELS)
def test_a_token_without_rollouts_has_all_the_spread_that_the_prior_leaves(
    model: SuccessPosterior,
) -> None:
    drawn = model.draws(counts([50, 0, 0, 0], [25, 0, 0, 0]), P, seed=1)
    assert drawn[:, 1].std() > 2 * drawn[:, 0].std()
    low, high = np.quantile(drawn[:, 1], [0.05, 0.95])
    assert low < 0.25
    assert high > 0.75


def test_without_any_rollout_success_may_be_anything() -> None:
    drawn = HierarchicalPosterior().draws(Counts.empty(4), P, seed=1)
    assert np.all((drawn >= 0) & (drawn <= 1))
    assert drawn.mean() == pytest.approx(0.5, abs=0.05)
    assert drawn.std() > 0.3


def test_tokens_of_a_node_learn_from_each_other_as_far_as_they_are_alike() -> None:
    alike, unlike = (
        counts([30] * 9 + [0], [27] * 9 + [0]),
        counts([30] * 9 + [0], [30, 0, 15] * 3 + [0]),
    )
    p = np.full(10, 0.1)
    model = HierarchicalPosterior()
    # Not all of them need be like the others.
    assert model.draws(alike, p, seed=1)[:, 9].std() < 0.15
    assert model.draws(unlike, p, seed=1)[:, 9].std() > 0.3


def test_what_is_likely_may_succeed_more_often_and_its_rare_neighbours_less() -> None:
    p = np.array([0.6, 0.3, 0.097, 0.001, 0.001, 0.001])
    n = [200, 200, 200, 0, 0, 0]
    model = HierarchicalPosterior()
    falls = model.draws(counts(n, [180, 120, 30, 0, 0, 0]), p, seed=1)
    rises = model.draws(counts(n, [30, 120, 180, 0, 0, 0]), p, seed=1)
    assert np.median(falls[:, 3]) < 0.2
    assert np.median(rises[:, 3]) > np.median(falls[:, 3]) + 0.2


def test_a_token_may_be_certain_to_fail_or_to_succeed() -> None:
    found = counts([40, 40, 40, 0], [0, 40, 20, 0])
    drawn = HierarchicalPosterior().draws(found, P, seed=1)
    assert 0.02 < np.mean(drawn[:, 0] == 0.0) < 0.9
    assert 0.02 < np.mean(drawn[:, 1] == 1.0) < 0.9
    assert not np.any((drawn[:, 2] == 0.0) | (drawn[:, 2] == 1.0))


def test_the_number_of_draws_changes_only_how_finely_they_are_drawn() -> None:
    found = counts([4, 3, 0, 0], [1, 2, 0, 0])
    few, many = (HierarchicalPosterior().draws(found, P, seed=1, size=k) for k in (2000, 20_000))
    np.testing.assert_allclose(few.mean(axis=0), many.mean(axis=0), atol=0.03)


@pytest.mark.parametrize("model", MODELS)
def test_many_rollouts_overrule_any_prior(model: SuccessPosterior) -> None:
    drawn = model.draws(counts([10_000, 10_000, 0, 0], [9_000, 1_000, 0, 0]), P, seed=1)
    np.testing.assert_allclose(drawn[:, :2].mean(axis=0), [0.9, 0.1], atol=0.002)
    np.testing.assert_allclose(drawn[:, :2].std(axis=0), [0.003, 0.003], rtol=0.15)


@pytest.mark.parametrize("model", MODELS)
def test_rewards_may_be_fractional(model: SuccessPosterior) -> None:
    drawn = model.draws(counts([200, 200, 1, 0], [50.5, 120.25, 0.3, 0]), P, seed=1)
    np.testing.assert_allclose(drawn[:, :2].mean(axis=0), [0.2525, 0.60125], atol=0.02)


@pytest.mark.parametrize(
    ("n", "wins", "exact"),
    [([1, 2], [2, 0], None), ([-1, 2], [0, 0], None), ([1, 0], [1, 0], [False, True])],
)
def test_impossible_counts_are_refused(n: list[int], wins: list[int], exact: object) -> None:
    with pytest.raises(ValueError, match=r"counts|exact"):
        counts(n, wins, exact)


def test_a_node_is_over_one_support_and_a_distribution() -> None:
    with pytest.raises(ValueError, match="shape"):
        NodePosterior(Counts.empty(3), P, seed=0)
    with pytest.raises(ValueError, match="distribution"):
        NodePosterior(Counts.empty(4), P * 2, seed=0)


def test_the_corrected_squared_norm_is_unbiased_where_tokens_have_two_rollouts() -> None:
    s, n = np.array([0.9, 0.4, 0.5, 0.2]), np.array([3, 2, 2, 4])
    truth = float(np.sum(ideal_gradient(P, s) ** 2))
    rng = np.random.default_rng(0)
    plain, corrected = [], []
    for _ in range(1000):
        node = NodePosterior(counts(n, rng.binomial(n, s)), P, seed=0, size=2)
        g = ideal_gradient(P, node.estimate)
        plain.append(g @ g)
        corrected.append(node.ideal_norm2)
    error = np.std(corrected) / np.sqrt(len(corrected))
    assert np.mean(corrected) == pytest.approx(truth, abs=4 * error)
    assert np.mean(plain) > truth + 5 * error


def test_the_variance_of_a_gradient_is_that_of_its_draws() -> None:
    rng = np.random.default_rng(0)
    sd = np.array([0.1, 0.2, 0.0, 0.3])
    g = ideal_gradient(P, rng.normal(0.5, 1.0, (200_000, 4)) * sd)
    assert gradient_variance(P, sd**2) == pytest.approx(g.var(axis=0).sum(), rel=0.01)
