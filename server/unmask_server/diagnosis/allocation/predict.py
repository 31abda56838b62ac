"""What a precision will cost: the growth simulated on truths that the data leave possible.

Each simulation takes chances of success drawn from the posterior for the truth and runs the planner
against it. The spread of their costs is how well the cost is known.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from unmask_server.diagnosis.allocation.beliefs import Beliefs, believe
from unmask_server.diagnosis.allocation.checks import CHECKS, check
from unmask_server.diagnosis.allocation.objectives import Objective
from unmask_server.diagnosis.allocation.problem import FloatArray, IntArray, Problem
from unmask_server.diagnosis.allocation.sensitivity import Sensitivity, sensitivity
from unmask_server.diagnosis.allocation.served import SOME, truths
from unmask_server.diagnosis.allocation.spend import Spending, needed, spend

HOPE = 1.3
"""Simulations from nothing promise too much by so much: tokens of real nodes are alike in ways that
the prior does not know. Measured on the first questions of the shipped student and checked on
others by `bench.forecasts`, like all factors here."""
EARLIER = 1.2
"""And so many tokens more a rollout: more than in simulations go to a generation's beginning, as
its end is often decided."""
SURE = 2.0
"""No forecast is surer than this, whatever the simulations agree on: on the shipped student growths
took between half and twice the median seven times in eight from nothing, and for half the half
width four times in five (`bench.forecasts`)."""
LEAST_BATCH = 64
"""Rollouts in a batch, at least: fewer would not keep an engine busy."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What one simulated growth took."""

    rollouts: float
    tokens: float
    reached: bool
    """Whether the precision was reached within the limit."""


@dataclass(frozen=True, slots=True)
class Range:
    """A guess: less than `low` one time in ten, more than `high` one time in ten."""

    low: float
    median: float
    high: float

    @staticmethod
    def of(values: Sequence[float]) -> Range:
        """Of simulated values; at least `SURE` times the median either way."""
        low, median, high = np.quantile(values, (0.1, 0.5, 0.9)).tolist()
        return Range(min(low, median / SURE), median, max(high, median * SURE))


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a precision will cost."""

    rollouts: Range
    tokens: Range
    may_be_more: bool
    """Whether a simulated growth gave up."""


def forecast(problem: Problem, objective: Objective, *, limit: float, most: int = 16) -> Forecast:
    """The cost of a precision from what is known.

    Args:
        problem: the nodes and what is known of them.
        objective: the precision.
        limit: rollouts after which a simulated growth is given up.
        most: simulated growths; fewer for many nodes.

    """
    count = max(3, min(most, 4000 // problem.nodes))
    costs = [
        simulate(problem, truth, objective, limit=limit, seed=k)
        for k, truth in enumerate(truths(problem, count))
    ]
    unknown = _unknown(problem, objective)
    more, longer = HOPE**unknown, (HOPE * EARLIER) ** unknown
    return Forecast(
        Range.of([cost.rollouts * more for cost in costs]),
        Range.of([cost.tokens * longer for cost in costs]),
        may_be_more=not all(cost.reached for cost in costs),
    )


def _unknown(problem: Problem, objective: Objective) -> float:
    """How little is known at the nodes that are not flat by their bound, in [0, 1]."""
    mine = (problem.bound >= objective.flat_norm) & (problem.weight > 0)
    n = problem.sums(problem.n)[mine]
    return float(np.mean(SOME / (SOME + n))) if len(n) else 0.0


def batch_size(problem: Problem, beliefs: Beliefs, open_: Sensitivity) -> int:
    """Rollouts in the next batch: what should be needed, and at most half of what counts."""
    counted, wanted = float(problem.n.sum()), needed(problem, beliefs, open_)
    # Few rollouts at a time would take many plans.
    wanted = max(wanted, min(counted / 10.0, 3.0 * wanted))
    return int(max(LEAST_BATCH, min(wanted, counted / 2.0)))


@dataclass(frozen=True, slots=True)
class Grown:
    """A growth after a batch."""

    problem: Problem
    beliefs: Beliefs
    open_: Sensitivity
    rollouts: int
    """So far."""
    tokens: float
    """So far."""


def growing(
    problem: Problem,
    truth: FloatArray,
    objective: Objective,
    rng: np.random.Generator,
    *,
    checks: int = 0,
) -> Iterator[Grown]:
    """The planner at work against a truth: as things are, then after the pilot and every batch.

    It ends when the planner gives nothing more, not when it is content.

    Args:
        problem: the nodes and what is known of them.
        truth: success after each token, shape (C,); for a token with a child, the child's V.
        objective: what is to become precise.
        rng: of the outcomes and of the plans.
        checks: how often the posteriors that are served are asked when all seems to be known.

    """
    rollouts, tokens = 0, 0.0
    tightened: FloatArray | float = 1.0
    given = Spending(np.zeros(len(problem.p), dtype=np.int64), pilot(problem, objective))
    beliefs = believe(problem)
    yield Grown(problem, beliefs, sensitivity(problem, beliefs, objective), 0, 0.0)
    while True:
        rollouts += given.total
        tokens += float(given.forced @ problem.tokens + given.free @ problem.tokens_free)
        problem = sampled(problem, truth, given, rng)
        beliefs = believe(problem)
        open_ = sensitivity(problem, beliefs, objective, tightened)
        if open_.done and checks and objective.statistic.is_of_nodes:
            checks -= 1
            said = check(problem, open_, objective, tightened)
            tightened = said.tightened
            if not said.passed:
                open_ = sensitivity(problem, beliefs, objective, tightened)
        yield Grown(problem, beliefs, open_, rollouts, tokens)
        size = batch_size(problem, beliefs, open_)
        given = spend(problem, beliefs, open_, rollouts=size, seed=int(rng.integers(2**31)))
        if not given.total:
            return


def simulate(
    problem: Problem, truth: FloatArray, objective: Objective, *, limit: float, seed: int
) -> Cost:
    """What the planner takes against a truth.

    Args:
        problem: as in `growing`.
        truth: likewise.
        objective: the precision that ends it.
        limit: rollouts after which it is given up.
        seed: equal arguments give equal costs.

    """
    rng = np.random.default_rng(seed)
    for at in growing(problem, truth, objective, rng, checks=CHECKS):
        if at.open_.done or at.rollouts >= limit:
            break
    return Cost(float(at.rollouts), at.tokens, reached=at.open_.done)


def sampled(
    problem: Problem, truth: FloatArray, given: Spending, rng: np.random.Generator
) -> Problem:
    """The problem after rollouts whose outcomes follow `truth`."""
    n, rewards = problem.n.copy(), problem.reward_sum.copy()
    through = given.forced.copy()
    parent = problem.parent.tolist()
    for node, free in enumerate(given.free.tolist()):
        cell = parent[node]
        arriving = free + (int(through[cell]) if cell >= 0 else 0)
        if arriving:
            cells = problem.of(node)
            p = problem.p[cells]
            through[cells] += rng.multinomial(arriving, p / p.sum())
    live = ~problem.known
    n[live] += through[live]
    rewards[live] += rng.binomial(through, truth.clip(0.0, 1.0))[live]
    return replace(problem, n=n, reward_sum=rewards)


def pilot(problem: Problem, objective: Objective) -> IntArray:
    """Free rollouts from each node so that every one has its pilot, those from above counted."""
    have = problem.sums(problem.n)
    coming = np.zeros(problem.nodes)
    free = np.zeros(problem.nodes, dtype=np.int64)
    for node in range(problem.nodes):
        cell = problem.parent[node]
        if cell >= 0:
            above = problem.node[cell]
            coming[node] = (coming[above] + free[above]) * problem.p[cell]
        if problem.weight[node] > 0 and problem.bound[node] >= objective.flat_norm:
            free[node] = max(0, int(np.ceil(objective.pilot - have[node] - coming[node] - 1e-9)))
    return free
