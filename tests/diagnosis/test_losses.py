"""Losses as trainers vary them, against automatic differentiation and brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from unmask_server.diagnosis import (
    Algorithm,
    Continuations,
    Form,
    Loss,
    Rest,
    TopKOf,
    UnboundedLossError,
    descent,
    ideal_gradient,
)
from unmask_server.diagnosis.continuation import value
from unmask_server.diagnosis.noise import sample_variance

torch.set_num_threads(1)

DIVERGENCES = (Loss.FORWARD_KL, Loss.REVERSE_KL, Loss.JSD)
BETA = 0.3
K = 12


def pair(seed: int, scale: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of a student and log-probabilities of a teacher; the last token is the tail."""
    rng = np.random.default_rng(seed)
    z = torch.tensor(rng.normal(0, scale, K), requires_grad=True)
    return z, torch.log_softmax(torch.tensor(rng.normal(0, scale, K)), -1)


def terms(loss: Loss, log_p: torch.Tensor, log_t: torch.Tensor) -> torch.Tensor:
    if loss is Loss.FORWARD_KL:
        return log_t.exp() * (log_t - log_p)
    if loss is Loss.REVERSE_KL:
        return log_p.exp() * (log_p - log_t)
    m = torch.log(BETA * log_t.exp() + (1 - BETA) * log_p.exp())
    return BETA * log_t.exp() * (log_t - m) + (1 - BETA) * log_p.exp() * (log_p - m)


def step_of(algorithm: Algorithm, z: torch.Tensor, log_t: torch.Tensor, **more: object):
    p = torch.softmax(z, -1).detach().numpy()
    return descent(algorithm, p, log_t.exp().numpy(), **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rest", Rest)
@pytest.mark.parametrize("of", TopKOf)
@pytest.mark.parametrize("loss", DIVERGENCES)
def test_top_k_losses_are_their_negative_gradients(
    loss: Loss, of: TopKOf, rest: Rest, seed: int
) -> None:
    z, log_t = pair(seed)
    log_p = torch.log_softmax(z, -1)
    chosen = torch.topk((log_t if of is TopKOf.TEACHER else log_p)[:-1], 4).indices
    inside = torch.zeros(K, dtype=torch.bool).index_fill(0, chosen, True)

    def part(log: torch.Tensor) -> torch.Tensor:
        if rest is Rest.TAIL:
            return torch.cat([log[inside], torch.logsumexp(log[~inside], 0, keepdim=True)])
        if rest is Rest.RENORMALIZED:
            return torch.log_softmax(log[inside], -1)
        return log[inside]

    terms(loss, part(log_p), part(log_t)).sum().backward()
    d = step_of(Algorithm(loss, beta=BETA, top_k=4, top_k_of=of, rest=rest), z, log_t)
    assert z.grad is not None
    np.testing.assert_allclose(d, -z.grad.numpy(), atol=1e-9, rtol=0)


def test_top_k_with_a_tail_as_worked_out_by_hand() -> None:
    """P = (.5, .3, .2), T = (.6, .39, .01), k = 2: with its tail bucket it is the whole KL."""
    p, t = np.array([0.5, 0.3, 0.2, 0.0]), np.array([0.6, 0.39, 0.01, 0.0])
    whole = descent(Algorithm(Loss.REVERSE_KL), p, t)
    np.testing.assert_allclose(descent(Algorithm(Loss.REVERSE_KL, top_k=2), p, t), whole)
    dropped = descent(Algorithm(Loss.REVERSE_KL, top_k=2, rest=Rest.DROPPED), p, t)
    assert np.abs(dropped - whole).max() > 0.1


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("clip", [0.02, 0.2, 5.0])
@pytest.mark.parametrize("loss", DIVERGENCES)
def test_a_clipped_term_has_no_gradient(loss: Loss, clip: float, seed: int) -> None:
    z, log_t = pair(seed)
    terms(loss, torch.log_softmax(z, -1), log_t).clamp(max=clip).sum().backward()
    d = step_of(Algorithm(loss, beta=BETA, token_clip=clip), z, log_t)
    assert z.grad is not None
    np.testing.assert_allclose(d, -z.grad.numpy(), atol=1e-9, rtol=0)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("of", TopKOf)
@pytest.mark.parametrize("clip", [0.05, 0.3])
@pytest.mark.parametrize("loss", DIVERGENCES)
def test_a_bucket_is_clipped_as_one_term(loss: Loss, clip: float, of: TopKOf, seed: int) -> None:
    z, log_t = pair(seed)
    log_p = torch.log_softmax(z, -1)
    chosen = torch.topk((log_t if of is TopKOf.TEACHER else log_p)[:-1], 3).indices
    inside = torch.zeros(K, dtype=torch.bool).index_fill(0, chosen, True)

    def part(log: torch.Tensor) -> torch.Tensor:
        return torch.cat([log[inside], torch.logsumexp(log[~inside], 0, keepdim=True)])

    terms(loss, part(log_p), part(log_t)).clamp(max=clip).sum().backward()
    algorithm = Algorithm(loss, beta=BETA, top_k=3, top_k_of=of, token_clip=clip)
    assert z.grad is not None
    np.testing.assert_allclose(step_of(algorithm, z, log_t), -z.grad.numpy(), atol=1e-9, rtol=0)


@pytest.mark.parametrize("loss", DIVERGENCES)
def test_what_is_renormalised_over_nothing_is_unbounded(loss: Loss) -> None:
    p, t = np.array([0.6, 0.3, 0.1, 0.0]), np.array([0.0, 0.7, 0.3, 0.0])
    algorithm = Algorithm(loss, beta=BETA, top_k=1, top_k_of=TopKOf.STUDENT, rest=Rest.RENORMALIZED)
    with pytest.raises(UnboundedLossError):
        descent(algorithm, p, t)


@pytest.mark.parametrize("seed", range(3))
def test_clipped_log_ratios_average_to_the_clipped_expectation(seed: int) -> None:
    z, log_t = pair(seed)
    p, t = torch.softmax(z, -1).detach().numpy(), log_t.exp().numpy()
    every = descent(
        Algorithm(Loss.REVERSE_KL, Form.SAMPLED, ratio_clip=0.7),
        np.tile(p, (K, 1)), np.tile(t, (K, 1)), observed=np.arange(K),
    )  # fmt: skip
    ratio = np.clip(np.log(t / p), -0.7, 0.7)
    by_hand = np.stack([ratio[y] * (np.eye(K)[y] - p) for y in range(K)])
    np.testing.assert_allclose(every, by_hand, atol=1e-12)
    expected = descent(Algorithm(Loss.REVERSE_KL, ratio_clip=0.7), p, t)
    np.testing.assert_allclose(p @ every, expected, atol=1e-12)


def test_a_clip_makes_an_impossible_token_finite() -> None:
    p, t = np.array([0.5, 0.3, 0.2]), np.array([0.7, 0.3, 0.0])
    with pytest.raises(UnboundedLossError):
        descent(Algorithm(Loss.REVERSE_KL), p, t)
    clipped = descent(Algorithm(Loss.REVERSE_KL, ratio_clip=2.0), p, t)
    assert np.isfinite(clipped).all()
    assert clipped[2] < 0


@pytest.mark.parametrize("loss", [*DIVERGENCES, Loss.MINILLM])
@pytest.mark.parametrize("reward", [Loss.GRPO, Loss.DR_GRPO])
def test_a_reward_adds_its_policy_gradient(loss: Loss, reward: Loss) -> None:
    z, log_t = pair(1)
    p, s = torch.softmax(z, -1).detach().numpy(), np.random.default_rng(0).random(K)
    both = Algorithm(loss, beta=BETA, reward_weight=0.4, reward_loss=reward)
    plain = step_of(Algorithm(loss, beta=BETA), z, log_t)
    scale = 0.5 if reward is Loss.GRPO else 1.0
    np.testing.assert_allclose(
        step_of(both, z, log_t, s=s, reward_std=0.5),
        plain + 0.4 * ideal_gradient(p, s) / scale, atol=1e-12,
    )  # fmt: skip


# A model of three tokens and at most three steps, token 0 ends: every sequence can be listed.
STEPS, TOKENS = 3, 3


def sequences() -> list[tuple[int, ...]]:
    found = []
    for length in range(1, STEPS + 1):
        for y in itertools.product(range(TOKENS), repeat=length):
            if all(y[:-1]) and (y[-1] == 0 or length == STEPS):
                found.append(y)
    return found


def prefixes() -> list[tuple[int, ...]]:
    return sorted({y[:t] for y in sequences() for t in range(len(y))})


class Chain:
    """A student and a teacher with logits of their own at every prefix."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.z = {u: torch.tensor(rng.normal(0, 1, TOKENS), requires_grad=True) for u in prefixes()}
        self.log_t = {u: torch.log_softmax(torch.tensor(rng.normal(0, 1, TOKENS)), -1)
                      for u in prefixes()}  # fmt: skip

    def p(self, u: tuple[int, ...]) -> np.ndarray:
        return torch.softmax(self.z[u], -1).detach().numpy()

    def ratios(self, y: tuple[int, ...]) -> np.ndarray:
        """log T - log P of each token."""
        return np.array(
            [float(self.log_t[y[:t]][y[t]]) - np.log(self.p(y[:t])[y[t]]) for t in range(len(y))]
        )

    def probability(self, y: tuple[int, ...], start: int = 0) -> float:
        return float(np.prod([self.p(y[:t])[y[t]] for t in range(start, len(y))]))

    def after(self, u: tuple[int, ...], j: int) -> list[tuple[float, np.ndarray]]:
        """Continuations after token j: their probability and the log-ratios of their tokens."""
        start = len(u) + 1
        return [
            (self.probability(y, start), self.ratios(y)[start:])
            for y in sequences()
            if y[:start] == (*u, j)
        ]


@pytest.mark.parametrize("seed", range(3))
def test_minillm_is_the_gradient_of_the_sequence_level_reverse_kl(seed: int) -> None:
    chain = Chain(seed)
    total = torch.zeros((), dtype=torch.float64)
    for y in sequences():
        log_p = sum(torch.log_softmax(chain.z[y[:t]], -1)[y[t]] for t in range(len(y)))
        log_t = sum(chain.log_t[y[:t]][y[t]] for t in range(len(y)))
        total = total + torch.exp(log_p) * (log_p - log_t)
    total.backward()
    for u in prefixes():
        later = [sum(q * r.sum() for q, r in chain.after(u, j)) for j in range(TOKENS)]
        d = step_of(Algorithm(Loss.MINILLM), chain.z[u], chain.log_t[u], later=np.array(later))
        gradient = chain.z[u].grad
        assert gradient is not None
        # The loss meets the node as often as the student comes by.
        np.testing.assert_allclose(chain.probability(u) * d, -gradient.numpy(), atol=1e-9, rtol=0)


VARIANTS = [
    Algorithm(Loss.MINILLM),
    Algorithm(Loss.MINILLM, length_normalized=True),
    Algorithm(Loss.MINILLM, single_step=False),
    Algorithm(Loss.MINILLM, single_step=False, length_normalized=True),
    Algorithm(Loss.MINILLM, ratio_clip=0.4),
    Algorithm(Loss.MINILLM, ratio_clip=0.4, single_step=False, length_normalized=True),
]


def sampled_steps(chain: Chain, algorithm: Algorithm) -> list[tuple[float, np.ndarray]]:
    """At the root: the step of every sequence, with its probability."""
    p, t = chain.p(()), chain.log_t[()].exp().numpy()
    one = Algorithm(
        algorithm.loss, Form.SAMPLED, ratio_clip=algorithm.ratio_clip,
        single_step=algorithm.single_step, length_normalized=algorithm.length_normalized,
    )  # fmt: skip
    found = []
    for y in sequences():
        r = chain.ratios(y)
        own = np.clip(r[0], -0.4, 0.4) if algorithm.ratio_clip else r[0]
        d = descent(one, p, t, observed=y[0], later=value(algorithm, own, r[1:]))
        found.append((chain.probability(y), d))
    return found


def moments(chain: Chain, algorithm: Algorithm) -> tuple[np.ndarray, np.ndarray]:
    """Exact mean and variance of the values after each token of the root."""
    mean, variance = np.zeros(TOKENS), np.zeros(TOKENS)
    for j in range(TOKENS):
        r = chain.ratios((j,))[0]
        own = np.clip(r, -0.4, 0.4) if algorithm.ratio_clip else r
        values = [(q, value(algorithm, own, rest)) for q, rest in chain.after((), j)]
        mean[j] = sum(q * v for q, v in values)
        variance[j] = sum(q * (v - mean[j]) ** 2 for q, v in values)
    return mean, variance


@pytest.mark.parametrize("algorithm", VARIANTS)
def test_minillm_sampled_averages_to_expected_with_the_stated_variance(
    algorithm: Algorithm,
) -> None:
    chain = Chain(5)
    mean, variance = moments(chain, algorithm)
    p, t = chain.p(()), chain.log_t[()].exp().numpy()
    expected = descent(algorithm, p, t, later=mean)
    steps = sampled_steps(chain, algorithm)
    np.testing.assert_allclose(sum(q * d for q, d in steps), expected, atol=1e-12)
    spread = sum(q * float((d - expected) @ (d - expected)) for q, d in steps)
    told = sample_variance(algorithm, p, t, later=mean, later_variance=variance)
    assert told == pytest.approx(spread, rel=1e-9)


@pytest.mark.parametrize("loss", DIVERGENCES)
def test_the_variance_of_one_tokens_step(loss: Loss) -> None:
    z, log_t = pair(2, scale=1.0)
    p, t = torch.softmax(z, -1).detach().numpy(), log_t.exp().numpy()
    algorithm = Algorithm(loss, beta=BETA, temperature=0.8)
    steps = [
        descent(Algorithm(loss, Form.SAMPLED, beta=BETA, temperature=0.8), p, t, observed=y)
        for y in range(K)
    ]
    expected = descent(algorithm, p, t)
    spread = sum(p[y] * float((d - expected) @ (d - expected)) for y, d in enumerate(steps))
    assert sample_variance(algorithm, p, t) == pytest.approx(spread, rel=1e-9)


@pytest.mark.parametrize("loss", [Loss.GRPO, Loss.DR_GRPO])
def test_the_variance_of_one_outcomes_step(loss: Loss) -> None:
    rng = np.random.default_rng(3)
    p, s, mean, std = rng.dirichlet(np.ones(6)), rng.random(6), 0.3, 0.4
    scale = std if loss is Loss.GRPO else 1.0
    expected = descent(Algorithm(loss), p, s=s, reward_std=std)
    spread = 0.0
    for y, r in itertools.product(range(6), (0.0, 1.0)):
        d = descent(Algorithm(loss, Form.SAMPLED), p, observed=y, advantage=(r - mean) / scale)
        chance = p[y] * (s[y] if r else 1.0 - s[y])
        spread += chance * float((d - expected) @ (d - expected))
    told = sample_variance(Algorithm(loss), p, s=s, mean_reward=mean, reward_std=std)
    assert told == pytest.approx(spread, rel=1e-9)


@pytest.mark.parametrize(
    ("setting", "loss"),
    [
        ({"top_k": 3}, Loss.GRPO),
        ({"top_k": 3}, Loss.MINILLM),
        ({"top_k": 3, "form": Form.SAMPLED}, Loss.REVERSE_KL),
        ({"ratio_clip": 1.0}, Loss.FORWARD_KL),
        ({"ratio_clip": 1.0, "top_k": 3}, Loss.REVERSE_KL),
        ({"reward_weight": 1.0}, Loss.DR_GRPO),
        ({"student_share": 0.5}, Loss.GRPO),
        ({"length_normalized": True}, Loss.REVERSE_KL),
        ({"temperature": 0.7}, Loss.MINILLM),
        ({"ratio_clip": float("inf")}, Loss.REVERSE_KL),
        ({"reward_loss": Loss.JSD}, Loss.REVERSE_KL),
    ],
)
def test_settings_that_a_loss_has_no_use_for_are_refused(setting: dict, loss: Loss) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        Algorithm(loss, **setting)


def test_draws_of_continuations_hold_the_truth() -> None:
    """90% intervals of the expected values, over 300 nodes of random tokens and rollouts."""
    rng = np.random.default_rng(0)
    held = []
    for seed in range(300):
        truth = rng.normal(-1.0, 0.7, 5)
        token = rng.integers(0, 5, rng.integers(20, 120))
        values = truth[token] + rng.normal(0, 1.3, len(token))
        found = Continuations.of(
            token, values, np.zeros(len(token)), np.zeros(6, dtype=bool), np.zeros(6)
        )
        low, high = np.quantile(found.draws(size=1000, seed=seed), (0.05, 0.95), axis=0)
        held.append(((low[:5] <= truth) & (truth <= high[:5])).mean())
    assert 0.86 <= np.mean(held) <= 0.95


def test_rewards_that_go_with_values_bias_the_gain_by_what_is_said() -> None:
    rng = np.random.default_rng(1)
    p, s, v = np.array([0.5, 0.3, 0.2, 0.0]), np.array([0.3, 0.6, 0.8, 0.5]), np.zeros(4)
    true_gain = float(ideal_gradient(p, s) @ (p * (v - p @ v)))
    gains, biases = [], []
    for _ in range(4000):
        token = np.repeat([0, 1, 2], 8)
        rewards = (rng.random(24) < s[token]).astype(float)
        values = 2.0 * (rewards - s[token]) + rng.normal(0, 0.5, 24)
        found = Continuations.of(token, values, rewards, np.array([False] * 4), np.zeros(4))
        estimate = np.bincount(token, rewards, minlength=4) / 8
        estimate[3] = 0.5
        gains.append(ideal_gradient(p, estimate) @ (p * (found.mean - p @ found.mean)))
        biases.append(found.gain_bias(p, p, np.array([8.0, 8, 8, 0])))
    off = np.mean(gains) - true_gain
    assert off > 10 * np.std(gains) / np.sqrt(len(gains))
    assert np.mean(biases) == pytest.approx(off, rel=0.1)


def test_nothing_follows_an_end_token() -> None:
    ends = np.array([True, False, False])
    found = Continuations.of(
        np.array([0, 1, 1]), np.array([9.0, 1.0, 2.0]), np.zeros(3), ends, np.array([0.25, 0, 0])
    )
    assert found.n.tolist() == [0, 2, 0]
    assert (found.draws(size=50, seed=1)[:, 0] == 0.25).all()
