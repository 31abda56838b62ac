"""Students whose every chance of success is known, for measuring what an allocation is worth."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from unmask_server.diagnosis import Algorithm, Loss, descent
from unmask_server.diagnosis.allocation import Problem

FloatArray = NDArray[np.float64]
REVERSE = Algorithm(Loss.REVERSE_KL)


@dataclass(frozen=True)
class World:
    """A problem nothing is known of yet, and the truth."""

    problem: Problem
    s: FloatArray
    """Shape (C,): success after each token; after one that leads to a node, that node's V."""

    def cosines(self, s: FloatArray) -> FloatArray:
        """cos(g, d) of every step and node if success were `s`, shape (A, N)."""
        g, norm = self.gradient(s)
        steps = self.problem.steps
        lengths = np.sqrt(self.problem.sums(steps * steps))
        return self.problem.sums(g * steps) / np.maximum(norm * lengths, 1e-300)

    def gradient(self, s: FloatArray) -> tuple[FloatArray, FloatArray]:
        """g over the cells, and |g| of each node."""
        g = self.problem.through_softmax(s)
        return g, np.sqrt(self.problem.sums(g * g))


def lone_nodes(seed: int, nodes: int, tokens: int = 32) -> World:
    """Nodes that have nothing to do with each other, as in the simulation of docs/calibration.md.

    P is a softmax of normal logits with deviation 2, s normal around the node's own level with
    deviation 0.3 and cut to [0, 1], log T normal around log P with deviation 1.
    """
    rng = np.random.default_rng((seed, 5))
    p = _softmax(2.0 * rng.normal(size=(nodes, tokens)))
    s = (rng.random((nodes, 1)) + 0.3 * rng.normal(size=(nodes, tokens))).clip(0.0, 1.0)
    t = _softmax(np.log(p) + rng.normal(size=(1, nodes, tokens)))
    return _world(p, s, t, np.full((nodes, tokens), -1), np.full((nodes, tokens), 20.0))


def trajectories(
    seed: int, paths: int, length: int, tokens: int = 12, teachers: int = 1, lead: float = 0.0
) -> World:
    """Generations of `length` tokens.

    Students are sure at many nodes and not at others (logits with deviation 0.5, 2 or 4); at most
    nodes the token hardly matters (strength of s around its level 2 to 1000). The first teacher
    knows of success as much as `lead` says: log T has `lead` times (s - V) added to its noise.
    """
    rng = np.random.default_rng((seed, 4))
    nodes = paths * length
    scale = rng.choice([0.5, 2.0, 4.0], size=(nodes, 1))
    p = _softmax(scale * rng.normal(size=(nodes, tokens)))
    level = np.repeat(rng.random(paths), length)[:, None]
    strength = rng.choice([2.0, 10.0, 100.0, 1000.0], p=[0.15, 0.15, 0.3, 0.4], size=(nodes, 1))
    s = rng.beta(level * strength + 1e-3, (1.0 - level) * strength + 1e-3, size=(nodes, tokens))
    child = np.full((nodes, tokens), -1)
    for node in range(nodes - 2, -1, -1):
        if (node + 1) % length:
            y = rng.choice(tokens, p=p[node])
            child[node, y], s[node, y] = node + 1, p[node + 1] @ s[node + 1]
    noise = rng.normal(0.0, rng.choice([0.3, 1.0], size=(1, nodes, 1)), (teachers, nodes, tokens))
    noise[0] += lead * (s - (p * s).sum(axis=1, keepdims=True))
    left = np.repeat(np.tile(np.arange(length, 0, -1.0), paths), tokens).reshape(nodes, tokens)
    return _world(p, s, _softmax(np.log(p) + noise), child, left)


def equal(world: World, each: int, rng: np.random.Generator) -> Problem:
    """What is known when every token was forced so often; rollouts count where they began."""
    problem = world.problem
    n = np.where(problem.forceable, float(each), 0.0)
    rewards = rng.binomial(n.astype(int), world.s.clip(0.0, 1.0)).astype(float)
    lone = np.full(len(n), -1)
    return replace(problem, n=n, reward_sum=rewards, child=lone)


def by_policy(world: World, each: int, rng: np.random.Generator) -> Problem:
    """The same with so many rollouts drawn from P at every node."""
    problem = world.problem
    n = np.concatenate(
        [
            rng.multinomial(each, problem.p[a:b] / problem.p[a:b].sum())
            for a, b in zip(problem.start[:-1], problem.start[1:], strict=True)
        ]
    )
    rewards = rng.binomial(n, world.s.clip(0.0, 1.0)).astype(float)
    return replace(problem, n=n.astype(float), reward_sum=rewards, child=np.full(len(n), -1))


def _softmax(logits: FloatArray) -> FloatArray:
    exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
    result: FloatArray = exp / exp.sum(axis=-1, keepdims=True)
    return result


def _world(
    p: FloatArray, s: FloatArray, t: FloatArray, child: NDArray[np.int64], left: FloatArray
) -> World:
    nodes, tokens = p.shape
    steps = np.stack([_with_tail(descent(REVERSE, p, one)) for one in t])
    cells = nodes * (tokens + 1)
    tail = np.zeros((nodes, tokens + 1), dtype=bool)
    tail[:, -1] = True
    problem = Problem(
        start=np.arange(0, cells + 1, tokens + 1),
        p=_with_tail(p),
        n=np.zeros(cells),
        reward_sum=np.zeros(cells),
        known=np.zeros(cells, dtype=bool),
        forceable=~tail.reshape(-1),
        child=_with_tail(child, -1).astype(np.int64),
        steps=steps,
        defined=np.ones((len(t), nodes), dtype=bool),
        group=np.zeros(len(t), dtype=np.int64),
        tokens=_with_tail(left, 1.0),
        weight=np.ones(nodes),
    )
    return World(problem, _with_tail(s))


def _with_tail(values: NDArray[np.float64] | NDArray[np.int64], last: float = 0.0) -> FloatArray:
    """A last column for the tail, all in one row."""
    column = np.full((len(values), 1), last)
    result: FloatArray = np.concatenate([values, column], axis=1).reshape(-1)
    return result
