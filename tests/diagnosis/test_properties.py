"""What holds at every node."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from unmask_server.diagnosis import (
    Algorithm,
    Counts,
    Form,
    JeffreysPosterior,
    Loss,
    NodePosterior,
    Status,
    align,
    descent,
    ideal_gradient,
    with_tail,
)

SIZES = st.integers(2, 12)
SEEDS = st.integers(0, 2**32)
GKD = st.sampled_from([Loss.FORWARD_KL, Loss.REVERSE_KL, Loss.JSD])
ALGORITHMS = st.builds(
    Algorithm,
    GKD,
    st.sampled_from(Form),
    beta=st.floats(0, 1),
    temperature=st.floats(0.1, 10),
)


def distribution(seed: int, size: int, concentration: float = 0.3) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.full(size, concentration)).clip(1e-12)


@given(SIZES, SEEDS, st.floats(1e-3, 1e3), st.floats(-5, 5))
def test_the_ideal_gradient_sums_to_zero_scales_with_success_and_sees_no_constant(
    size: int, seed: int, scale: float, shift: float
) -> None:
    p = distribution(seed, size)
    p = p / p.sum()
    s = np.random.default_rng(seed + 1).random(size)
    g = ideal_gradient(p, s)
    assert abs(g.sum()) < 1e-12
    np.testing.assert_allclose(
        ideal_gradient(p, scale * s + shift), scale * g, atol=1e-11 * (scale + 1)
    )


@given(ALGORITHMS, SIZES, SEEDS)
def test_steps_sum_to_zero_and_vanish_where_teacher_and_student_agree(
    algorithm: Algorithm, size: int, seed: int
) -> None:
    p, t = distribution(seed, size), distribution(seed + 1, size)
    p, t = p / p.sum(), t / t.sum()
    d = descent(algorithm, p, t, observed=0)
    assert abs(d.sum()) <= 1e-9 * (1 + np.abs(d).sum())
    if algorithm.form is Form.EXPECTED:
        np.testing.assert_allclose(descent(algorithm, p, p), 0, atol=1e-12)


@given(ALGORITHMS, SIZES, SEEDS, st.permutations(range(12)))
def test_the_order_of_tokens_does_not_matter(
    algorithm: Algorithm, size: int, seed: int, order: list[int]
) -> None:
    places = [i for i in order if i < size]
    p, t = distribution(seed, size), distribution(seed + 1, size)
    d = descent(algorithm, p, t, observed=0)
    moved = descent(algorithm, p[places], t[places], observed=places.index(0))
    np.testing.assert_allclose(moved, d[places], rtol=1e-9, atol=1e-12)


@settings(max_examples=60)
@given(
    ALGORITHMS,
    SEEDS,
    hnp.arrays(np.int64, 6, elements=st.integers(0, 200)),
    st.floats(0, 1),
    st.floats(0, 0.5),
)
def test_answers_are_finite_bounded_ordered_and_repeatable(
    algorithm: Algorithm, seed: int, n: np.ndarray, share: float, noise: float
) -> None:
    p = with_tail(distribution(seed, 7)[:5] / 7)
    t = distribution(seed + 1, 6)
    t = t / t.sum()
    counts = Counts(n.astype(float), n * share, np.zeros(6, dtype=bool))
    ids = np.arange(5, dtype=np.int32)
    once, again = (
        align(
            NodePosterior(counts, p, seed=seed, size=200),
            algorithm,
            p,
            t,
            ids=ids,
            observed=1,
            noise=noise,
            min_coverage=0.0,
        )
        for _ in range(2)
    )
    assert once == again
    assert (once.cosine is not None) == once.status.is_scored
    for interval in (once.cosine, once.gain, once.advantage):
        if interval is not None:
            assert -math.inf < interval.low <= interval.median <= interval.high < math.inf
    if once.cosine is not None:
        assert once.cosine.low >= -1
        assert once.cosine.high <= 1
    if n.sum() == 0:
        assert once.status in (Status.NO_DATA, Status.NO_SIGNAL)


@settings(max_examples=40)
@given(SEEDS, st.floats(0.1, 0.9))
def test_a_cosine_does_not_see_how_long_the_step_is(seed: int, share: float) -> None:
    p, t = distribution(seed, 6, 1.0), distribution(seed + 1, 6, 1.0)
    p, t = p / p.sum(), t / t.sum()
    rng = np.random.default_rng(seed)
    n = rng.integers(50, 100, 6)
    counts = Counts(
        n.astype(float), rng.binomial(n, rng.random(6)).astype(float), np.zeros(6, bool)
    )
    # Where teachers are thought to know something of success, what they think matters as well.
    drawn = NodePosterior(counts, p, seed=seed, model=JeffreysPosterior())
    ids = np.arange(5, dtype=np.int32)
    forward = Algorithm(Loss.FORWARD_KL)
    # T - P of a teacher on the way to T is shorter and points the same way.
    far = align(drawn, forward, p, t, ids=ids, min_coverage=0.0)
    near = align(drawn, forward, p, share * t + (1 - share) * p, ids=ids, min_coverage=0.0)
    if far.cosine is not None and near.cosine is not None:
        assert math.isclose(far.cosine.median, near.cosine.median, abs_tol=1e-9)
