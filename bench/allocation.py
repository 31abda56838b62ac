"""Rollouts and tokens that a precision takes: adaptive against the simple allocations.

Simulated students (`bench.simulated`), so that errors are known. Every repetition is another
student; all allocations see the same. What each figure compares is said in docs/estimates.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from unmask_server.diagnosis.allocation import (
    Objective,
    Problem,
    Statistic,
    believe,
)
from unmask_server.diagnosis.allocation.draws import draw
from unmask_server.diagnosis.allocation.predict import growing

from bench.figures import figure, show
from bench.simulated import World, by_policy, equal, lone_nodes, trajectories

FloatArray = NDArray[np.float64]
WANTED = 0.1
"""Root mean square error of a cosine."""
ENDLESS = Objective(Statistic.COSINE, 1e-3, flat_norm=0.0)
FLAT = 0.05
"""In generations, a node is called flat where the data are sure that |g| is below this. Errors are
taken over all other nodes, and over those that are called so although |g| is above twice this."""


def main() -> None:
    """Print all figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=20)
    repetitions = parser.parse_args().repetitions
    for nodes in (20, 200):
        lone(nodes, repetitions)
    lone(2000, max(2, repetitions // 10))
    whole(repetitions)
    ranking(repetitions)


def lone(nodes: int, repetitions: int) -> None:
    """Rollouts a node, at nodes by themselves."""
    ours, forced, free, least = [], [], [], []
    for seed in range(repetitions):
        world = lone_nodes(seed, nodes)
        mine = world.gradient(world.s)[1] > 1e-3
        trace = _grown(world, mine, ENDLESS, seed, limit=2.0**14 * nodes)
        ours.append(_needed(trace[:, 0], trace[:, 2]) / nodes)
        forced.append(32.0 * _simple(world, equal, mine, seed))
        free.append(_simple(world, by_policy, mine, seed))
        least.append(_oracle(world, mine) / nodes)
    show(figure(f"rollouts_equal_over_adaptive_{nodes}", "rollouts a node", forced, ours, goal=8.0))
    show(figure(f"rollouts_policy_over_adaptive_{nodes}", "rollouts a node", free, ours, goal=1.5))
    show(figure(f"oracle_rollouts_{nodes}", "rollouts a node", ours, least, direction="down"))


def whole(repetitions: int) -> None:
    """Tokens for whole generations."""
    ours, naive, rollouts = [], [], []
    for seed in range(repetitions):
        world = trajectories(seed, paths=20, length=40, tokens=32)
        objective = replace(ENDLESS, flat_norm=FLAT)
        trace = _grown(world, None, objective, seed, limit=4_000_000)
        ours.append(_needed(trace[:, 1], trace[:, 2]))
        rollouts.append(_needed(trace[:, 0], trace[:, 2]) / 20)
        each = _simple(world, equal, None, seed)
        naive.append(each * float(world.problem.tokens[world.problem.forceable].sum()))
    show(figure("trajectory_tokens", "tokens", naive, ours, goal=20.0))
    paper = [45_000.0] * repetitions
    show(figure("paper_rollouts_per_question", "rollouts a question", paper, rollouts))


def ranking(repetitions: int) -> None:
    """Rollouts to tell the better of two teachers."""
    objective = Objective(Statistic.RANKING, 1e-6)
    worlds = [trajectories(s, 20, 20, teachers=2, lead=1.0) for s in range(repetitions)]
    ours, right = [], []
    for seed, world in enumerate(worlds):
        rollouts, found = _ranked(world, objective, seed)
        ours.append(rollouts)
        right.append(found)
    each = 1
    while np.mean([_by_nodes(world, each, seed) for seed, world in enumerate(worlds)]) < 0.95:
        each *= 2
    cells = [float(world.problem.forceable.sum()) for world in worlds]
    by_nodes = [
        _simple(world, equal, None, seed) * size
        for seed, (world, size) in enumerate(zip(worlds, cells, strict=True))
    ]
    found = figure("teacher_ranking", "rollouts", by_nodes, ours, goal=20.0)
    show({**found, "right": float(np.mean(right))})
    forced = [each * size for size in cells]
    show(figure("teacher_ranking_over_equal", "rollouts", forced, ours))


def _ranked(world: World, objective: Objective, seed: int) -> tuple[float, bool]:
    """Rollouts until the planner is sure, and whether it is right."""
    for at in growing(world.problem, world.s, objective, np.random.default_rng(seed)):
        if at.open_.done or at.rollouts > 200_000:
            break
    return float(at.rollouts), _better(world, at.beliefs.mean) == _better(world, world.s)


def _better(world: World, s: FloatArray) -> int:
    """The teacher with the higher gain per unit step."""
    g, _ = world.gradient(s)
    steps = world.problem.steps
    return int(np.argmax(steps @ g / np.sqrt((steps * steps).sum(axis=1))))


def _by_nodes(world: World, each: int, seed: int) -> bool:
    """Whether the mean of the nodes' cosines, each from equal forcing, names the better teacher."""
    problem = equal(world, each, np.random.default_rng(seed))
    cosines = world.cosines(believe(problem).mean)
    mine = problem.bound > FLAT
    true = world.cosines(world.s)[:, mine].mean(axis=1)
    return bool(np.argmax(cosines[:, mine].mean(axis=1)) == np.argmax(true))


def _grown(
    world: World, mine: NDArray[np.bool_] | None, objective: Objective, seed: int, *, limit: float
) -> FloatArray:
    """Rollouts, tokens and error after every batch, shape (batches, 3), until that is small."""
    rows: list[tuple[float, float, float]] = []
    for at in growing(world.problem, world.s, objective, np.random.default_rng(seed)):
        if at.rollouts:
            asked = _asked(world, at.open_.flat) if mine is None else mine
            rows.append((at.rollouts, at.tokens, _error(world, at.beliefs.mean, asked)))
            if rows[-1][2] < WANTED * 0.7 or at.rollouts > limit or at.open_.done:
                break
    return np.array(rows)


def _simple(
    world: World,
    allocate: Callable[[World, int, np.random.Generator], Problem],
    mine: NDArray[np.bool_] | None,
    seed: int,
) -> float:
    """How many of each an allocation needs."""
    amounts, errors = [], []
    each = 2
    while not errors or errors[-1] > WANTED * 0.7:
        problem = allocate(world, each, np.random.default_rng((seed, each)))
        beliefs = believe(problem)
        asked = _asked(world, draw(problem, beliefs, FLAT).flat) if mine is None else mine
        errors.append(_error(world, beliefs.mean, asked))
        amounts.append(float(each))
        each = int(each * 1.4) + 1
    return _needed(np.array(amounts), np.array(errors))


def _asked(world: World, flat: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return ~flat | (world.gradient(world.s)[1] > 2.0 * FLAT)


def _error(world: World, s: FloatArray, mine: NDArray[np.bool_]) -> float:
    off = (world.cosines(s) - world.cosines(world.s))[:, mine]
    return float(np.sqrt(np.mean(off * off)))


def _needed(amounts: FloatArray, errors: FloatArray) -> float:
    """Where the error comes down to what is wanted for good, between the amounts tried."""
    above = np.flatnonzero(errors > WANTED)
    if not len(above):
        return float(amounts[0])
    last = int(above[-1])
    if last + 1 == len(amounts):
        return float(amounts[-1])
    x, y = np.log(amounts[last : last + 2]), np.log(errors[last : last + 2])
    return float(np.exp(x[0] + (np.log(WANTED) - y[0]) / (y[1] - y[0]) * (x[1] - x[0])))


def _oracle(world: World, mine: NDArray[np.bool_]) -> float:
    """Rollouts for the mean square error wanted if all derivatives and variances were known."""
    problem = world.problem
    g, norm = world.gradient(world.s)
    unit = g / problem.spread(norm.clip(1e-12))
    d = problem.steps[0]
    d = d / problem.spread(np.sqrt(problem.sums(d * d)))
    q = (d - problem.spread(problem.sums(unit * d)) * unit) / problem.spread(norm.clip(1e-12))
    slope = problem.through_softmax(q)
    part = problem.sums(np.abs(slope) * np.sqrt(world.s * (1.0 - world.s)))[mine]
    return float(part.sum() ** 2 / (len(part) * WANTED**2))


if __name__ == "__main__":
    main()
