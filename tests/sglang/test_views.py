"""From raw log-probabilities of the likeliest ids to those under a sampling."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from unmask_server.engines.base import ZERO_LOGPROB, Sampling
from unmask_server.engines.sglang.views import cut, kept, log_z

Floats = NDArray[np.float64]

logits = hnp.arrays(np.float64, st.integers(2, 40), elements=st.floats(-40, 40))
temperatures = st.floats(0.1, 5.0)


def log_softmax(x: Floats) -> Floats:
    values: Floats = np.sort(x)[::-1] - np.logaddexp.reduce(x)
    return values


@given(logits, temperatures, st.data())
def test_a_normaliser_is_right_to_single_precision_or_not_told(
    x: Floats, temperature: float, data: st.DataObject
) -> None:
    raw = log_softmax(x)
    known = data.draw(st.integers(1, len(raw)), label="known")
    exact = np.logaddexp.reduce(raw / temperature)
    found = log_z(raw[:known], temperature, rest=len(raw) - known)
    if known == len(raw):
        assert found is not None
    if found is not None:
        # From below: what is left out can only add to it.
        assert exact - 2e-7 < found <= exact + 1e-9


@given(logits, temperatures)
def test_single_precision_does_not_make_a_normaliser_dishonest(
    x: Floats, temperature: float
) -> None:
    raw = log_softmax(x)
    served = raw.astype(np.float32).astype(np.float64)
    for known in range(1, len(raw)):
        found = log_z(served[:known], temperature, rest=len(raw) - known)
        if found is not None:
            # What float32 takes from the log-probabilities themselves is no fault of the bound.
            rounding = 2e-7 * (1 + np.abs(raw[:known]).max() / temperature)
            assert found == pytest.approx(np.logaddexp.reduce(raw / temperature), abs=rounding)


def test_a_long_tail_is_not_called_negligible() -> None:
    # One id has nearly all the mass, 100,000 others share 1e-4 of it: at temperature 2 they matter.
    sure = np.log(np.array([1 - 1e-4]))
    assert log_z(sure, 2.0, rest=100_000) is None
    assert log_z(sure, 0.5, rest=100_000) is None
    more = np.log(np.r_[1 - 1e-4, np.full(20, 1e-9)])
    assert log_z(more, 0.5, rest=100_000) is not None


def naive(raw: Floats, sampling: Sampling) -> list[int]:
    """Ranks that survive, by the words of `Sampling`."""
    p = np.exp(raw / sampling.temperature)
    p = p / p.sum()
    ranks = list(range(len(p)))
    if sampling.top_k:
        ranks = ranks[: sampling.top_k]
    whole = 1.0 if sampling.joint else sum(p[ranks])
    survivors: list[int] = []
    mass = 0.0
    for rank in ranks:
        if mass >= sampling.top_p * whole:
            break
        survivors.append(rank)
        mass += p[rank]
    return survivors


def near_a_border(raw: Floats, sampling: Sampling) -> bool:
    """Whether rounding decides what survives."""
    p = np.exp(raw / sampling.temperature)
    p = p / p.sum()
    p = p[: sampling.top_k or None]
    whole = 1.0 if sampling.joint else p.sum()
    return bool(np.any(np.abs(np.cumsum(p) - sampling.top_p * whole) < 1e-9))


samplings = st.builds(
    Sampling, temperatures, st.floats(0.05, 1.0), st.integers(0, 45), st.booleans()
).filter(lambda sampling: sampling.top_k or sampling.top_p < 1)


@given(logits, samplings, st.data())
def test_what_survives_is_what_the_definition_says_or_not_told(
    x: Floats, sampling: Sampling, data: st.DataObject
) -> None:
    raw = log_softmax(x)
    assume(not near_a_border(raw, sampling))
    tempered = raw / sampling.temperature - np.logaddexp.reduce(raw / sampling.temperature)
    expected = naive(raw, sampling)
    assert kept(tempered, sampling, complete=True) == len(expected)
    known = data.draw(st.integers(1, len(raw)), label="known")
    found = kept(tempered[:known], sampling, complete=False)
    if sampling.top_k == 0 and sampling.top_p == 1.0:
        assert found is None
    elif found is None:
        # More is needed only where the survivors, or the k likeliest, are not all known.
        assert known < max(len(expected), sampling.top_k)
    else:
        assert found == len(expected)


@given(logits, samplings)
def test_survivors_share_the_whole_mass(x: Floats, sampling: Sampling) -> None:
    raw = log_softmax(x)
    tempered = raw / sampling.temperature - np.logaddexp.reduce(raw / sampling.temperature)
    n = kept(tempered, sampling, complete=True)
    assert n is not None
    survives = np.arange(len(raw)) < n
    values = cut(tempered, survives, float(np.exp(tempered[:n]).sum()))
    assert np.exp(values).sum() == pytest.approx(1.0)
    assert (values[n:] == ZERO_LOGPROB).all()
    assert (values <= 0.0).all()
    ratios = np.exp(values[:n] - values[0])
    np.testing.assert_allclose(ratios, np.exp(tempered[:n] - tempered[0]), rtol=1e-9)


def test_top_p_counts_the_whole_distribution_only_where_it_is_joint() -> None:
    tempered = np.log(np.array([0.4, 0.3, 0.2, 0.1]))
    # Of the two likeliest the first has 4/7 = 0.57 of what top_k left, and 0.4 of the whole.
    assert kept(tempered, Sampling(1.0, 0.5, 2), complete=False) == 1
    assert kept(tempered, Sampling(1.0, 0.5, 2, joint=True), complete=False) == 2


def test_the_renormalised_policy_of_a_truncated_rollout() -> None:
    # The field's case: (0.6, 0.3, 0.1) at top_p 0.8 samples (2/3, 1/3, 0).
    tempered = np.log(np.array([0.6, 0.3, 0.1]))
    n = kept(tempered, Sampling(1.0, 0.8), complete=True)
    assert n == 2
    values = cut(tempered, np.arange(3) < n, 0.9)
    np.testing.assert_allclose(np.exp(values), [2 / 3, 1 / 3, 0.0])
