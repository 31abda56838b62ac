"""What a planner believes of success: a posterior in closed form, of all cells at once.

The answers that are served come from `posterior.HierarchicalPosterior`. A plan is only about where
to look next: a crude posterior costs a thousandth, and a plan made from it can be less thrifty but
never wrong. Each token's prior is Beta(KAPPA mu, KAPPA (1 - mu)) around its node's own mean mu.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unmask_server.diagnosis.allocation.problem import BoolArray, FloatArray, Problem

KAPPA = 2.0
"""Rollouts that the node's mean is worth for each of its tokens."""

CARE = 2.0
"""Rollouts, half of them successes, that are added where a spread is judged (Agresti and Coull)."""


@dataclass(frozen=True, slots=True)
class Beliefs:
    """Of every cell of a problem."""

    mean: FloatArray
    """Shape (C,): posterior mean of s, in [0, 1]."""
    variance: FloatArray
    """Shape (C,): of the posterior, without `shared`."""
    shared: FloatArray
    """Shape (C,): standard deviation that comes from the node's mean not being known, which moves
    all of its tokens together."""
    noise: FloatArray
    """Shape (C,): s (1 - s), the variance of one rollout's reward, as believed."""
    strength: FloatArray
    """Shape (C,): rollouts that what is known is worth: k more make the variance
    `noise` / (`strength` + k)."""
    inner: BoolArray
    """Shape (C,): known from the child's cells rather than from rollouts counted here."""
    value: FloatArray
    """Shape (N,): V, the mean success from the node on."""


def believe(problem: Problem) -> Beliefs:
    """Beliefs from the counts, backed up from children to parents."""
    n, rewards = problem.n, np.minimum(problem.reward_sum, problem.n)
    live = ~problem.known
    total, won = problem.sums(n * live), problem.sums(rewards * live)
    level = (won + 0.5) / (total + 1.0)
    centre = problem.spread(level)
    careful_level = (won + CARE / 2.0) / (total + CARE)
    doubt = np.sqrt(careful_level * (1.0 - careful_level) / (total + CARE))
    mean = (KAPPA * centre + rewards) / (KAPPA + n)
    mean[problem.known] = (rewards / np.maximum(n, 1e-300))[problem.known]
    # Few that all ended alike prove little.
    careful = (mean * (KAPPA + n) + CARE / 2.0) / (KAPPA + n + CARE)
    noise = careful * (1.0 - careful)
    strength = KAPPA + n + 1.0
    variance = np.where(live, noise / strength, 0.0)
    shared = np.where(live, KAPPA / (KAPPA + n) * problem.spread(doubt), 0.0)
    value, inner = _back_up(problem, mean, variance, shared)
    return Beliefs(mean, variance, shared, noise, strength, inner, value)


def _back_up(
    problem: Problem, mean: FloatArray, variance: FloatArray, shared: FloatArray
) -> tuple[FloatArray, BoolArray]:
    """Values of the nodes, deepest first; what is believed of inner cells is replaced."""
    inner = np.zeros(len(mean), dtype=bool)
    value = problem.sums(problem.p * mean)
    apart = problem.sums(problem.p**2 * variance)
    together = problem.sums(problem.p * shared)
    value_variance = apart + together**2
    # Children come after their parents, so from the last node up every child is done when its
    # parent's cell is. Plain numbers: this is one short step a node.
    parents = problem.parent.tolist()
    for node in range(problem.nodes - 1, -1, -1):
        cell = parents[node]
        # What is known here and below share rollouts: the surer one counts, never both.
        if cell < 0 or value_variance[node] >= variance[cell] + shared[cell] ** 2:
            continue
        above, p = problem.node[cell], problem.p[cell]
        value[above] += p * (value[node] - mean[cell])
        apart[above] += p * p * (value_variance[node] - variance[cell])
        together[above] -= p * shared[cell]
        value_variance[above] = apart[above] + together[above] ** 2
        mean[cell], variance[cell], shared[cell] = value[node], value_variance[node], 0.0
        inner[cell] = True
    return value, inner
