"""Values of nodes in closed form, of all of them at once: where a posterior would cost too much."""

from __future__ import annotations

import numpy as np

from unmask_server.diagnosis.allocation.beliefs import CARE, KAPPA
from unmask_server.diagnosis.allocation.problem import Problem
from unmask_server.diagnosis.value import Value


class SimpleValues:
    """V of every node, each token's prior Beta(KAPPA mu, KAPPA (1 - mu)) around its node's mean.

    Like `believe`, without its care for spreads: what a value is worth is for a posterior to weigh.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        n, won = problem.n, np.minimum(problem.reward_sum, problem.n)
        live = ~(problem.known & (n > 0))
        total = problem.sums(n * live)
        self._level = (problem.sums(won * live) + 0.5) / (total + 1.0)
        mean = (KAPPA * problem.spread(self._level) + won) / (KAPPA + n)
        self._mean = np.where(live, mean, won / np.maximum(n, 1e-300))
        self._apart = np.where(live, mean * (1.0 - mean) / (KAPPA + n + 1.0), 0.0)
        self._doubt = self._level * (1.0 - self._level) / (total + CARE)
        self._pull = np.where(live, KAPPA / (KAPPA + n), 0.0)
        self._live = live
        p = problem.p
        self._value = problem.sums(p * self._mean)
        self._variance = problem.sums(p * p * self._apart)
        self._together = problem.sums(p * self._pull)

    def of(self, node: int, told: dict[int, Value]) -> Value:
        """V of a node.

        Args:
            node: which.
            told: what nodes below say of the cells that lead to them; less than what was counted
                is not believed.

        """
        value, variance = float(self._value[node]), float(self._variance[node])
        together = float(self._together[node])
        for cell, said in told.items():
            if not self._live[cell] or said.n <= self._problem.n[cell]:
                continue
            p, pull = float(self._problem.p[cell]), KAPPA / (KAPPA + said.n)
            mean = (KAPPA * float(self._level[node]) + said.reward_sum) / (KAPPA + said.n)
            value += p * (mean - float(self._mean[cell]))
            apart = mean * (1.0 - mean) / (KAPPA + said.n + 1.0)
            variance += p * p * (apart - float(self._apart[cell]))
            together += p * (pull - float(self._pull[cell]))
        return Value.like(value, max(0.0, variance) + float(self._doubt[node]) * together**2)
