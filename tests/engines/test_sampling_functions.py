"""The arithmetic of sampling, without a model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from unmask_server.engines.base import RAW, ZERO_LOGPROB, Sampling
from unmask_server.engines.transformers.sampling import draw, likeliest, log_probs, uniforms

from tests.engines.helpers import naive_probs


def test_uniforms_depend_on_seed_and_step_alone():
    seeds = np.array([5, -3, 5, 2**63 - 1, -(2**63)], np.int64)
    steps = np.array([0, 7, 1, 0, 0], np.int64)
    all_at_once = uniforms(seeds, steps)
    one_by_one = [uniforms(seeds[i : i + 1], steps[i : i + 1])[0] for i in range(5)]
    assert all_at_once.tolist() == one_by_one
    assert len(set(one_by_one)) == 5


def test_uniforms_are_uniform_along_seeds_and_along_steps():
    n = 20_000
    for u in (
        uniforms(np.arange(n), np.zeros(n, np.int64)),
        uniforms(np.full(n, 7), np.arange(n)),
    ):
        counts = np.histogram(u, bins=50, range=(0, 1))[0]
        chi_square = ((counts - n / 50) ** 2 / (n / 50)).sum()
        assert chi_square < 90  # 49 degrees of freedom: 99.9% are below 85.4
        assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 0.03


@pytest.mark.parametrize("size", [30, 6000])
def test_ties_go_to_the_lower_id(size):
    logits = torch.zeros(1, size)
    logits[0, 20:25] = 1.0
    assert likeliest(logits, 3).tolist() == [[20, 21, 22]]
    assert likeliest(logits, 7).tolist() == [[20, 21, 22, 23, 24, 0, 1]]
    kept = log_probs(logits, Sampling(top_k=2)).exp()[0]
    assert kept.nonzero()[:, 0].tolist() == [20, 21]
    assert log_probs(torch.zeros(1, size), Sampling(top_p=0.1)).exp()[0].nonzero()[
        :, 0
    ].tolist() == (list(range(size // 10)))


@pytest.mark.parametrize("size", [50, 5000])
@pytest.mark.parametrize("sampling", [
    RAW, Sampling(0.5), Sampling(top_k=7), Sampling(top_p=0.3), Sampling(top_p=0.95),
    Sampling(2.0, 0.7, 900), Sampling(0.8, 0.9, 40), Sampling(0.8, 0.9999),
    Sampling(0.8, 0.6, 12, joint=True), Sampling(1.5, 0.9, 900, joint=True),
])  # fmt: skip
def test_log_probs_are_those_of_the_definition(size, sampling):
    logits = torch.randn(4, size, generator=torch.Generator().manual_seed(1)) * 2
    got = log_probs(logits, sampling)
    for row in range(4):
        want = naive_probs(logits[row], sampling)
        np.testing.assert_allclose(got[row].exp().numpy(), want, atol=1e-12)
        assert (got[row].numpy()[want == 0] == ZERO_LOGPROB).all()


@pytest.mark.parametrize("temperature", [1e-300, 1e-9, 1e300])
def test_extreme_temperatures_overflow_nothing(temperature):
    logits = torch.tensor([[3.0, -1e30, 2.0]])
    probs = log_probs(logits, Sampling(temperature)).exp()
    assert torch.isfinite(probs).all()
    assert probs.sum() == pytest.approx(1)


def test_no_uniform_number_draws_an_id_of_probability_zero():
    logits = torch.tensor([[0.0, 1.0, 0.5, -2.0]]).expand(3, 4)
    u = np.array([0.0, 0.5, 1 - 2**-53])
    assert draw(logits, [(Sampling(top_k=1), None)], u).tolist() == [1, 1, 1]
    assert draw(logits, [(Sampling(top_k=2), None)], u).tolist() == [1, 1, 2]


def test_rows_of_a_batch_are_drawn_each_under_its_own_sampling():
    logits = torch.randn(6, 30, generator=torch.Generator().manual_seed(2))
    u = np.linspace(0.05, 0.95, 6)
    a, b = Sampling(0.5), Sampling(1.3, 0.8)
    mixed = draw(logits, [(a, np.array([0, 3, 5])), (b, np.array([1, 2, 4]))], u)
    of_a, of_b = draw(logits, [(a, None)], u), draw(logits, [(b, None)], u)
    assert mixed.tolist() == [of_a[0], of_b[1], of_b[2], of_a[3], of_b[4], of_a[5]]
