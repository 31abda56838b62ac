"""A teacher of whom only some tokens are known, against losses over these and one bucket."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from unmask_server.diagnosis import Algorithm, Loss, descent, with_spread_rest
from unmask_server.diagnosis.support import TAIL_RESOLUTION

LOSSES = [
    Algorithm(Loss.REVERSE_KL),
    Algorithm(Loss.FORWARD_KL),
    Algorithm(Loss.JSD, beta=0.3),
    Algorithm(Loss.JSD, beta=0.8),
]


def bucketed(p: torch.Tensor, t: torch.Tensor, algorithm: Algorithm) -> torch.Tensor:
    """A loss over its last axis, as its definition has it."""
    if algorithm.loss is Loss.REVERSE_KL:
        return (p * (p / t).log()).sum()
    if algorithm.loss is Loss.FORWARD_KL:
        return (t * (t / p).log()).sum()
    beta = algorithm.beta
    m = beta * t + (1 - beta) * p
    return beta * (t * (t / m).log()).sum() + (1 - beta) * (p * (p / m).log()).sum()


@pytest.mark.parametrize("algorithm", LOSSES, ids=str)
@pytest.mark.parametrize("number", [1, 4, 11])
def test_the_step_is_that_of_the_loss_with_one_bucket_for_the_rest(
    algorithm: Algorithm, number: int
) -> None:
    rng = np.random.default_rng(number)
    logits = torch.tensor(rng.normal(0, 2, 12), requires_grad=True)
    teacher = rng.dirichlet(np.ones(12))
    listed = np.zeros(12, dtype=bool)
    listed[rng.permutation(11)[:number]] = True
    p = torch.softmax(logits, dim=0)
    t = torch.tensor(teacher)
    mask = torch.tensor(listed)

    def bucket(q: torch.Tensor) -> torch.Tensor:
        return torch.cat([q[mask], q[~mask].sum()[None]])

    bucketed(bucket(p), bucket(t), algorithm).backward()
    student = p.detach().numpy()
    d = descent(algorithm, student, with_spread_rest(student, teacher, listed))
    np.testing.assert_allclose(d, -logits.grad.numpy(), atol=1e-12)


def test_a_list_that_adds_up_to_one_rules_nothing_out() -> None:
    p = np.array([0.5, 0.2, 0.2, 0.1])
    for total in (1.0, 1.0 + 1e-7, 1.0005):
        t = with_spread_rest(
            p, np.array([0.6, 0.4, 0, 0]) * total, np.array([True, True, False, False])
        )
        assert t.sum() == pytest.approx(1.0, abs=1e-12)
        assert t[2:].sum() == pytest.approx(TAIL_RESOLUTION, rel=1e-2)
        assert t[2] == pytest.approx(2 * t[3])


def test_where_the_student_gives_the_others_nothing_the_tail_has_it_all() -> None:
    t = with_spread_rest(
        np.array([0.6, 0.4, 0.0, 0.0]),
        np.array([0.5, 0.2, 0.0, 0.0]),
        np.array([True, True, False, False]),
    )
    np.testing.assert_allclose(t, [0.5, 0.2, 0.0, 0.3])
