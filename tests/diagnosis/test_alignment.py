"""Alignments at a node: what is said, and when nothing is."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from unmask_server.diagnosis import (
    TAIL_ID,
    Algorithm,
    Alignment,
    Counts,
    Form,
    Interval,
    Loss,
    NodePosterior,
    Status,
    align,
    ideal,
    ideal_gradient,
    measure,
)
from unmask_server.diagnosis.step import StepInputs, step

from tests.diagnosis.making import counts

REVERSE = Algorithm(Loss.REVERSE_KL)
IDS = np.array([11, 12, 13], dtype=np.int32)
P = np.array([0.5, 0.3, 0.2, 0.0])
T = np.array([0.7, 0.2, 0.1, 0.0])
TELLING = counts([1000, 1000, 1000, 0], [900, 300, 200, 0])
UNTELLING = counts([10, 10, 10, 0], [5, 5, 5, 0])


def node(found: Counts = TELLING, p: np.ndarray = P) -> NodePosterior:
    return NodePosterior(found, p, seed=1)


def assert_finite(result: Alignment) -> None:
    for field in dataclasses.fields(result):
        value = getattr(result, field.name)
        values = dataclasses.astuple(value) if isinstance(value, Interval) else (value,)
        assert all(math.isfinite(v) for v in values if isinstance(v, (int, float))), field.name


def test_with_many_rollouts_the_numbers_are_the_formulas() -> None:
    s = np.array([0.9, 0.3, 0.2, 0.0])
    g = ideal_gradient(P, s)
    result = align(node(), Algorithm(Loss.FORWARD_KL), P, T, ids=IDS)
    d = T - P
    assert result.status is Status.OK
    assert result.cosine is not None
    assert result.gain is not None
    assert result.advantage is not None
    assert result.ideal_norm2 is not None
    assert result.cosine.median == pytest.approx(
        g @ d / np.linalg.norm(g) / np.linalg.norm(d), abs=0.01
    )
    assert result.gain.median == pytest.approx(g @ d, rel=0.02)
    assert result.advantage.median == pytest.approx((T - P) @ s, rel=0.02)
    assert result.ideal_norm2 == pytest.approx(g @ g, rel=0.02)
    assert result.ideal_norm_is_known
    assert result.descent_norm2 == pytest.approx(d @ d)
    assert result.p_positive == 1.0
    assert result.effective_support == pytest.approx(1 / 0.38)


def test_the_same_inputs_give_the_same_answer() -> None:
    assert align(node(), REVERSE, P, T, ids=IDS) == align(node(), REVERSE, P, T, ids=IDS)


def test_one_nodes_draws_serve_every_teacher() -> None:
    drawn = node()
    align(drawn, REVERSE, P, T, ids=IDS)
    before = drawn.success
    align(drawn, Algorithm(Loss.JSD), P, T[[1, 0, 2, 3]], ids=IDS)
    assert drawn.success is before


def test_with_two_candidates_every_cosine_is_plus_or_minus_one() -> None:
    p, t = np.array([0.6, 0.4, 0.0]), np.array([0.3, 0.7, 0.0])
    drawn = NodePosterior(counts([200, 200, 0], [150, 50, 0]), p, seed=1)
    result = align(drawn, REVERSE, p, t, ids=IDS[:2])
    assert result.cosine is not None
    assert result.cosine.median == pytest.approx(-1)
    assert result.effective_support <= 2


def test_the_expected_policy_gradient_is_the_ideal_gradient() -> None:
    for loss in (Loss.DR_GRPO, Loss.GRPO):
        result = align(node(), Algorithm(loss), P, ids=IDS, reward_std=0.5)
        assert result.cosine is not None
        assert result.cosine.low == pytest.approx(1)
        assert result.advantage is None
        assert result.covered_teacher is None


def test_a_sampled_policy_gradient_follows_its_trajectorys_advantage() -> None:
    algorithm = Algorithm(Loss.DR_GRPO, Form.SAMPLED)
    good = align(node(), algorithm, P, ids=IDS, observed=0, advantage=0.5)
    bad = align(node(), algorithm, P, ids=IDS, observed=0, advantage=-0.5)
    assert good.cosine is not None
    assert bad.cosine is not None
    assert good.cosine.median == pytest.approx(-bad.cosine.median)
    none = align(node(), algorithm, P, ids=IDS, observed=0, advantage=0.0)
    assert none.status is Status.NO_SIGNAL
    unknown = align(node(), algorithm, P, ids=IDS, observed=0)
    assert unknown.status is Status.NO_DATA


def test_sampled_policy_gradients_average_to_the_expected_one_as_the_policy_samples() -> None:
    """Whatever the temperature of a divergence beside them is."""
    at_the_loss = np.array([0.4, 0.33, 0.27, 0.0])
    s = np.array([0.9, 0.3, 0.2, 0.0])
    drawn = node()
    total = np.zeros(len(P))
    for y in range(3):
        inputs = StepInputs(at_the_loss, None, observed=y, advantage=float(s[y] - P @ s))
        taken = step(drawn, Algorithm(Loss.DR_GRPO, Form.SAMPLED), inputs)
        assert taken.base is not None
        total += P[y] * taken.base
    np.testing.assert_allclose(total, ideal_gradient(P, s), atol=1e-12)


@pytest.mark.parametrize("form", Form)
def test_a_reward_makes_no_step_of_a_loss_that_has_none(form: Form) -> None:
    zero = np.array([0.7, 0.3, 0.0, 0.0])
    seen = {"ids": IDS, "observed": 2, "advantage": 0.5}
    result = align(node(), Algorithm(Loss.REVERSE_KL, form, reward_weight=0.5), P, zero, **seen)
    assert result.status is Status.UNBOUNDED
    assert (result.gain, result.descent_norm2) == (None, None)
    unscored = align(node(), Algorithm(Loss.MINILLM, form, reward_weight=0.5), P, T, **seen)
    assert unscored.status is Status.NO_DATA
    assert (unscored.gain, unscored.descent_norm2) == (None, None)


def test_a_teacher_with_a_zero_is_unbounded_with_its_token() -> None:
    t = np.array([0.8, 0.0, 0.2, 0.0])
    result = align(node(), REVERSE, P, t, ids=IDS)
    assert result.status is Status.UNBOUNDED
    assert result.unbounded_id == 12
    assert result.cosine is None
    assert result.gain is None
    assert result.descent_norm2 is None
    assert result.advantage is not None
    assert_finite(result)
    for loss in (Loss.FORWARD_KL, Loss.JSD):
        assert align(node(), Algorithm(loss), P, t, ids=IDS).status is Status.OK
    only_other = Algorithm(Loss.REVERSE_KL, Form.SAMPLED)
    assert align(node(), only_other, P, t, ids=IDS, observed=0).status is Status.OK
    assert align(node(), only_other, P, t, ids=IDS, observed=1).unbounded_id == 12


def test_a_tail_lost_in_rounding_is_not_an_infinite_loss() -> None:
    p, t = np.array([0.5, 0.3, 0.19999, 1e-5]), np.array([0.7, 0.2, 0.1, 0.0])
    result = align(node(p=p), REVERSE, p, t, ids=IDS)
    plain = align(node(), REVERSE, P, T, ids=IDS)
    assert result.status is Status.OK
    assert result.cosine is not None
    assert plain.cosine is not None
    assert result.cosine.median == pytest.approx(plain.cosine.median, abs=1e-2)
    assert TAIL_ID not in IDS


def test_the_same_teacher_as_the_student_is_no_signal_even_with_rounding() -> None:
    rounded = (P * (1 + 4e-6 * np.array([1, -1, 1, 0]))).astype(np.float32).astype(np.float64)
    for loss in (Loss.FORWARD_KL, Loss.REVERSE_KL, Loss.JSD):
        for t in (P, rounded):
            result = align(node(), Algorithm(loss), P, t, ids=IDS)
            assert result.status is Status.NO_SIGNAL
            assert result.cosine is None
    sampled = align(
        node(), Algorithm(Loss.REVERSE_KL, Form.SAMPLED), P, rounded, ids=IDS, observed=0
    )
    assert sampled.status is Status.NO_SIGNAL


def test_a_noisy_engine_hides_small_signals_and_widens_the_rest() -> None:
    t = P * np.exp([0.1, -0.1, 0.05, 0.0])
    t /= t.sum()
    quiet = align(node(), REVERSE, P, t, ids=IDS)
    assert quiet.status is Status.OK
    assert align(node(), REVERSE, P, t, ids=IDS, noise=0.3).status is Status.NO_SIGNAL
    far = np.array([0.98, 0.01, 0.01, 0.0])
    for form, observed in ((Form.EXPECTED, None), (Form.SAMPLED, 1)):
        algorithm = Algorithm(Loss.REVERSE_KL, form)
        plain = align(node(), algorithm, P, far, ids=IDS, observed=observed)
        noisy = align(node(), algorithm, P, far, ids=IDS, observed=observed, noise=0.3)
        assert noisy.status is Status.OK
        for name in ("gain", "advantage"):
            assert getattr(noisy, name).width > getattr(plain, name).width


def test_where_data_cannot_tell_the_gradient_from_zero_the_node_is_flat() -> None:
    result = align(node(UNTELLING), REVERSE, P, T, ids=IDS)
    assert result.status is Status.FLAT
    assert result.cosine is None
    assert result.p_positive is None
    assert result.flat_bound == pytest.approx(math.sqrt(2) * 0.5)
    assert result.gain is not None
    assert not result.ideal_norm_is_known


def test_a_nearly_certain_student_is_flat_without_rollouts() -> None:
    p = np.array([0.9995, 0.0003, 0.0002, 0.0])
    result = align(node(Counts.empty(4), p), REVERSE, p, T, ids=IDS)
    assert result.status is Status.FLAT
    assert result.gain is None
    assert ideal(node(Counts.empty(4), p)).status is Status.FLAT


def test_success_that_does_not_depend_on_the_token_is_flat_however_well_known() -> None:
    found = counts([1, 1, 1, 0], [1, 1, 1, 0], [True, True, True, False])
    assert align(node(found), REVERSE, P, T, ids=IDS).status is Status.FLAT


def test_exact_outcomes_alone_can_say_everything() -> None:
    found = counts([1, 1, 1, 0], [1, 0, 0, 0], [True, True, True, False])
    result = align(node(found), REVERSE, P, T, ids=IDS)
    assert result.status is Status.OK
    assert result.cosine is not None
    assert result.cosine.width == pytest.approx(0)


def test_no_rollout_is_no_data() -> None:
    for found in (Counts.empty(4), counts([1, 0, 0, 0], [0, 0, 0, 0], [True, False, False, False])):
        result = align(node(found), REVERSE, P, T, ids=IDS)
        assert result.status is Status.NO_DATA
        assert result.gain is None
        assert result.advantage is None
        assert result.ideal_norm2 is None
        assert result.descent_norm2 is not None
        gradient = ideal(node(found))
        assert gradient.status is Status.NO_DATA
        assert gradient.components is None
    assert align(node(Counts.empty(4)), Algorithm(Loss.DR_GRPO), P, ids=IDS).descent_norm2 is None


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_too_much_mass_outside_of_the_candidates_is_said(who: str) -> None:
    wide = np.array([0.4, 0.2, 0.2, 0.2])
    p, t = (wide, T) if who == "student" else (P, wide)
    found = counts([1000, 1000, 1000, 50], [900, 300, 200, 10])
    result = align(NodePosterior(found, p, seed=1), Algorithm(Loss.JSD), p, t, ids=IDS)
    assert result.status is Status.LOW_COVERAGE
    assert result.cosine is not None
    relaxed = align(
        NodePosterior(found, p, seed=1), Algorithm(Loss.JSD), p, t, ids=IDS, min_coverage=0.5
    )
    assert relaxed.status is Status.OK


def test_the_ideal_gradient_comes_with_its_parts() -> None:
    found = ideal(node())
    truth = ideal_gradient(P, [0.9, 0.3, 0.2, 0.0])
    assert found.status is Status.OK
    assert found.components is not None
    assert found.norm is not None
    assert found.success is not None
    for interval, value in zip(found.components, truth, strict=True):
        assert interval.low <= value <= interval.high
    assert found.norm.median == pytest.approx(np.linalg.norm(truth), rel=0.05)
    assert found.success.median == pytest.approx(0.58, abs=0.02)
    assert found.bound >= found.norm.high


def test_the_policy_that_draws_and_the_loss_have_their_own_probabilities() -> None:
    greedy = np.array([2 / 3, 1 / 3, 0.0, 0.0])
    found = counts([1000, 1000, 0, 0], [900, 300, 0, 0])
    result = measure(NodePosterior(found, greedy, seed=1), REVERSE, P, T, ids=IDS).alignment
    g = ideal_gradient(greedy, [0.9, 0.3, 0.0, 0.0])
    d = P * (
        np.sum(P[:3] * np.log(P[:3] / T[:3]))
        - np.log(P / np.where(T > 0, T, 1), where=P > 0, out=np.zeros(4))
    )
    assert result.cosine is not None
    assert result.cosine.median == pytest.approx(
        g @ d / np.linalg.norm(g) / np.linalg.norm(d), abs=0.01
    )


@pytest.mark.parametrize("loss", [Loss.FORWARD_KL, Loss.REVERSE_KL, Loss.JSD])
@pytest.mark.parametrize("form", list(Form))
def test_extreme_inputs_give_no_nan(loss: Loss, form: Form) -> None:
    one_hot, other = np.array([1.0, 0, 0, 0]), np.array([0, 0, 1.0, 0])
    tiny = np.array([1 - 1e-300, 1e-300, 0, 0])
    for p in (one_hot, tiny, P):
        for t in (one_hot, other, tiny, T, np.array([0, 0, 0, 1.0])):
            for found in (TELLING, UNTELLING, Counts.empty(4), counts([1e9] * 4, [1e9, 0, 0, 0])):
                for observed in (0, 1, 2):
                    assert_finite(
                        align(
                            node(found, p), Algorithm(loss, form), p, t, ids=IDS, observed=observed
                        )
                    )


def test_arrays_over_different_supports_are_refused() -> None:
    with pytest.raises(ValueError, match="one support"):
        align(node(), REVERSE, P[:3], T, ids=IDS)
    with pytest.raises(ValueError, match="teacher"):
        align(node(), REVERSE, P, ids=IDS)
