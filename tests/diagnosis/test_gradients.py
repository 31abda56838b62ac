"""Formulas of steps against automatic differentiation, and against each other."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from unmask_server.diagnosis import (
    Algorithm,
    Form,
    Loss,
    UnboundedLossError,
    descent,
    flat_bound,
    ideal_gradient,
    kl,
)

torch.set_num_threads(1)

TEMPERATURES = (1.0, 0.7, 2.0)
SEEDS = range(5)


def logits(seed: int, k: int = 12) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    rng = np.random.default_rng(seed)
    student = torch.tensor(rng.normal(0, 2, k), requires_grad=True)
    return student, torch.tensor(rng.normal(0, 2, k)), rng.random(k)


def softmax(z: torch.Tensor, temperature: float = 1.0) -> np.ndarray:
    return torch.softmax(z / temperature, -1).detach().numpy()


def forward_kl(log_p: torch.Tensor, log_t: torch.Tensor, beta: float) -> torch.Tensor:
    return torch.sum(log_t.exp() * (log_t - log_p))


def reverse_kl(log_p: torch.Tensor, log_t: torch.Tensor, beta: float) -> torch.Tensor:
    return torch.sum(log_p.exp() * (log_p - log_t))


def jsd(log_p: torch.Tensor, log_t: torch.Tensor, beta: float) -> torch.Tensor:
    """TRL's convention, GKDTrainer.generalized_jsd_loss."""
    log_m = torch.logaddexp(log_p + math.log1p(-beta), log_t + math.log(beta))
    return beta * forward_kl(log_m, log_t, beta) + (1 - beta) * reverse_kl(log_p, log_m, beta)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize(
    ("algorithm", "loss"),
    [
        (Algorithm(Loss.FORWARD_KL), forward_kl),
        (Algorithm(Loss.REVERSE_KL), reverse_kl),
        (Algorithm(Loss.JSD, beta=0.5), jsd),
        (Algorithm(Loss.JSD, beta=0.1), jsd),
        (Algorithm(Loss.JSD, beta=0.999), jsd),
        (Algorithm(Loss.JSD, beta=0.0), forward_kl),
        (Algorithm(Loss.JSD, beta=1.0), reverse_kl),
    ],
)
def test_steps_of_divergences_are_their_negative_gradients(
    algorithm: Algorithm,
    loss: Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor],
    temperature: float,
    seed: int,
) -> None:
    z, teacher, _ = logits(seed)
    log_p = torch.log_softmax(z / temperature, -1)
    loss(log_p, torch.log_softmax(teacher / temperature, -1), algorithm.beta).backward()
    at = Algorithm(algorithm.loss, beta=algorithm.beta, temperature=temperature)
    d = descent(at, softmax(z, temperature), softmax(teacher, temperature))
    assert z.grad is not None
    np.testing.assert_allclose(d, -z.grad.numpy(), atol=1e-9, rtol=0)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_ideal_gradient_is_the_gradient_of_success(seed: int) -> None:
    z, _, s = logits(seed)
    (torch.softmax(z, -1) @ torch.tensor(s)).backward()
    assert z.grad is not None
    np.testing.assert_allclose(ideal_gradient(softmax(z), s), z.grad.numpy(), atol=1e-9, rtol=0)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("loss", [Loss.FORWARD_KL, Loss.REVERSE_KL, Loss.JSD])
def test_sampled_steps_average_to_the_expected_step(loss: Loss, seed: int) -> None:
    z, teacher, _ = logits(seed)
    p, t = softmax(z, 0.7), softmax(teacher, 0.7)
    every = descent(
        Algorithm(loss, Form.SAMPLED, beta=0.3, temperature=0.7),
        np.tile(p, (len(p), 1)),
        np.tile(t, (len(p), 1)),
        observed=np.arange(len(p)),
    )
    expected = descent(Algorithm(loss, beta=0.3, temperature=0.7), p, t)
    np.testing.assert_allclose(p @ every, expected, atol=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_sampled_policy_gradients_average_to_the_ideal_gradient(seed: int) -> None:
    z, _, s = logits(seed)
    p, mean, std = softmax(z), 0.37, 0.48
    tiled = np.tile(p, (len(p), 1))
    for loss, scale in ((Loss.DR_GRPO, 1.0), (Loss.GRPO, std)):
        every = descent(
            Algorithm(loss, Form.SAMPLED),
            tiled,
            observed=np.arange(len(p)),
            advantage=(s - mean) / scale,
        )
        np.testing.assert_allclose(p @ every, ideal_gradient(p, s) / scale, atol=1e-12)
        np.testing.assert_allclose(
            descent(Algorithm(loss), p, s=s, reward_std=std), ideal_gradient(p, s) / scale
        )


@pytest.mark.parametrize("seed", SEEDS)
def test_a_sampled_step_is_the_gradient_of_the_reinforced_token(seed: int) -> None:
    z, teacher, _ = logits(seed)
    p, t = softmax(z), softmax(teacher)
    advantage = math.log(t[3]) - math.log(p[3])
    (advantage * torch.log_softmax(z, -1)[3]).backward()
    d = descent(Algorithm(Loss.REVERSE_KL, Form.SAMPLED), p, t, observed=3)
    assert z.grad is not None
    np.testing.assert_allclose(d, z.grad.numpy(), atol=1e-9, rtol=0)


def test_jsd_turns_into_the_divergences_at_its_ends() -> None:
    z, teacher, _ = logits(1)
    p, t = softmax(z), softmax(teacher)
    for beta, scale, loss in ((1e-7, 1e-7, Loss.FORWARD_KL), (1 - 1e-7, 1e-7, Loss.REVERSE_KL)):
        near = descent(Algorithm(Loss.JSD, beta=beta), p, t) / scale
        np.testing.assert_allclose(near, descent(Algorithm(loss), p, t), atol=1e-4)


def test_leading_axes_are_nodes() -> None:
    nodes = [logits(seed) for seed in SEEDS]
    p = np.stack([softmax(z) for z, _, _ in nodes])
    t = np.stack([softmax(teacher) for _, teacher, _ in nodes])
    for algorithm in (Algorithm(Loss.REVERSE_KL), Algorithm(Loss.JSD), Algorithm(Loss.FORWARD_KL)):
        together = descent(algorithm, p, t)
        for i in range(len(nodes)):
            np.testing.assert_array_equal(together[i], descent(algorithm, p[i], t[i]))


def test_the_sampled_token_and_the_full_step_are_different_things() -> None:
    p, t = np.array([0.6, 0.3, 0.1]), np.array([0.2, 0.7, 0.1])
    full = descent(Algorithm(Loss.REVERSE_KL), p, t)
    sampled = descent(Algorithm(Loss.REVERSE_KL, Form.SAMPLED), p, t, observed=0)
    np.testing.assert_allclose(sampled, math.log(1 / 3) * np.array([0.4, -0.3, -0.1]))
    divergence = 0.6 * math.log(3) + 0.3 * math.log(3 / 7)
    np.testing.assert_allclose(full, p * (divergence - np.log(p / t)))
    assert not np.allclose(full / np.linalg.norm(full), sampled / np.linalg.norm(sampled))


def test_a_teacher_with_a_zero_makes_reverse_kl_infinite_and_no_other_loss() -> None:
    p, t = np.array([0.5, 0.5]), np.array([0.0, 1.0])
    with pytest.raises(UnboundedLossError) as raised:
        descent(Algorithm(Loss.REVERSE_KL), p, t)
    assert raised.value.index == 0
    with pytest.raises(UnboundedLossError):
        descent(Algorithm(Loss.REVERSE_KL, Form.SAMPLED), p, t, observed=0)
    sampled = descent(Algorithm(Loss.REVERSE_KL, Form.SAMPLED), p, t, observed=1)
    np.testing.assert_allclose(sampled, math.log(2) * np.array([-0.5, 0.5]))
    np.testing.assert_allclose(descent(Algorithm(Loss.FORWARD_KL), p, t), [-0.5, 0.5])
    assert np.all(np.isfinite(descent(Algorithm(Loss.JSD), p, t)))
    assert kl(p, t) is None
    assert kl(t, p) == pytest.approx(0.69315, abs=1e-5)


def test_tokens_that_the_student_never_takes_leave_steps_finite() -> None:
    p, t = np.array([1.0, 0.0, 0.0]), np.array([0.5, 0.5, 0.0])
    for algorithm in (Algorithm(Loss.REVERSE_KL), Algorithm(Loss.JSD), Algorithm(Loss.FORWARD_KL)):
        assert np.all(np.isfinite(descent(algorithm, p, t)))
    np.testing.assert_allclose(descent(Algorithm(Loss.FORWARD_KL), p, t), t - p)


def test_the_tail_bucket_belongs_in_the_divergence() -> None:
    p, t = np.array([0.5, 0.3, 0.2]), np.array([0.6, 0.39, 0.01])
    assert kl(p, t) == pytest.approx(0.42928, abs=1e-5)
    truncated = sum(p[:2] * np.log(p[:2] / t[:2]))
    assert truncated == pytest.approx(-0.16987, abs=1e-5)


@pytest.mark.parametrize(
    ("algorithm", "missing"),
    [
        (Algorithm(Loss.REVERSE_KL), "teacher"),
        (Algorithm(Loss.REVERSE_KL, Form.SAMPLED), "observed"),
        (Algorithm(Loss.DR_GRPO), "chances of success"),
        (Algorithm(Loss.GRPO, Form.SAMPLED), "advantage"),
    ],
)
def test_what_an_algorithm_lacks_is_named(algorithm: Algorithm, missing: str) -> None:
    p = np.array([0.5, 0.5])
    t = p if algorithm.form is Form.SAMPLED and algorithm.needs_teacher else None
    observed = None if missing == "observed" else 0
    with pytest.raises(ValueError, match=missing):
        descent(algorithm, p, t, observed=observed)


@pytest.mark.parametrize("settings", [{"beta": -0.1}, {"beta": 1.1}, {"temperature": 0.0}])
def test_settings_that_make_no_loss_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="is not"):
        Algorithm(Loss.JSD, **settings)  # type: ignore[arg-type]


def test_the_flat_bound_is_reached_and_never_passed() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        p = rng.dirichlet(np.full(6, 0.3))
        s = rng.integers(0, 2, 6)
        assert np.linalg.norm(ideal_gradient(p, s)) <= flat_bound(p) + 1e-12
    two = np.array([0.999, 0.001])
    norm = np.linalg.norm(ideal_gradient(two, [1, 0]))
    assert norm == pytest.approx(flat_bound(two), rel=2e-3)
