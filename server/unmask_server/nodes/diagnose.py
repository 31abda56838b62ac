"""From the evidence at nodes to alignments: the mathematics applied to what was read."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from unmask_server.catalog.types import Verifier
from unmask_server.diagnosis import Algorithm, Alignment, Form, Loss, NodePosterior
from unmask_server.diagnosis.alignment import Measured, measure, not_covered
from unmask_server.diagnosis.selection import shares_of_best
from unmask_server.diagnosis.terms import Draws
from unmask_server.nodes.evidence import Evidence
from unmask_server.nodes.resolve import NodeSet
from unmask_server.tree import Moments


@dataclass(frozen=True, slots=True)
class Group:
    """Rewards of a question's free rollouts: what GRPO calls a group."""

    mean: float
    std: float

    @classmethod
    def of(cls, found: Moments, more: float | None = None) -> Group | None:
        """The group of some rewards, and perhaps one more; None of none."""
        n, total, squares = float(found.n), found.total, found.squares
        if more is not None:
            n, total, squares = n + 1.0, total + more, squares + more**2
        if n == 0.0:
            return None
        mean = total / n
        variance = squares / n - mean**2
        # What rewards that are all the same leave is rounding.
        return cls(mean, math.sqrt(variance) if variance > _ROUNDING else 0.0)


_ROUNDING = 1e-12


@dataclass(frozen=True, slots=True)
class Scored:
    """One alignment of an answer."""

    teacher: int | None
    """Which of the request's teachers; None where the algorithm has none."""
    algorithm: Algorithm
    measured: Measured
    divergence: float | None
    """KL(P|T) in nats at the loss's temperature; None without a teacher or where it is infinite."""
    weight: float | None
    """How often training meets the node, relative to the student's own data; None where all data
    are the student's."""
    p_best: float | None = None
    """Posterior probability that this teacher's cosine is the highest of those under the same
    algorithm that have one here, in [0, 1]; None where it has none."""

    @property
    def alignment(self) -> Alignment:
        """The answer about this node."""
        return self.measured.alignment

    @property
    def draws(self) -> Draws:
        """What adds up over nodes."""
        return self.measured.draws


def node_seed(nodes: NodeSet, evidence: Evidence) -> int:
    """Seed of a node's posterior draws: the same node and candidates give the same draws."""
    digest = hashlib.blake2b(digest_size=8)
    for part in (nodes.policy.id, nodes.question.id, nodes.verifier.id):
        digest.update(part.encode())
    digest.update(np.asarray(nodes.tokens[: evidence.position], dtype="<u4").tobytes())
    digest.update(evidence.scores.ids.tobytes())
    return int.from_bytes(digest.digest(), "little")


def posterior(nodes: NodeSet, evidence: Evidence) -> NodePosterior:
    """Posterior draws of success at a node; made once and used for every teacher and algorithm."""
    return NodePosterior(
        evidence.known,
        evidence.scores.sampling,
        seed=node_seed(nodes, evidence),
        dispersion=nodes.dispersion,
    )


def alignments(
    nodes: NodeSet,
    evidence: Evidence,
    drawn: NodePosterior,
    algorithms: Sequence[Algorithm],
    *,
    group: Group | None,
    min_coverage: float,
) -> list[Scored]:
    """Every teacher under every algorithm, then the algorithms that have no teacher."""
    scored = []
    for teacher in range(len(evidence.scores.teachers)):
        for algorithm in algorithms:
            if algorithm.needs_teacher:
                scored.append(
                    _score(nodes, evidence, drawn, algorithm, teacher, group, min_coverage)
                )
    for algorithm in algorithms:
        if not algorithm.needs_teacher:
            scored.append(_score(nodes, evidence, drawn, algorithm, None, group, min_coverage))
    return _ranked(scored, algorithms)


def _ranked(scored: Sequence[Scored], algorithms: Sequence[Algorithm]) -> list[Scored]:
    """The same with `p_best`."""
    ranked = list(scored)
    for algorithm in algorithms:
        rivals = [
            (i, cosine)
            for i, one in enumerate(scored)
            if one.algorithm == algorithm and (cosine := one.measured.cosine) is not None
        ]
        shares = shares_of_best([cosine for _, cosine in rivals])
        for (i, _), share in zip(rivals, shares, strict=True):
            ranked[i] = replace(scored[i], p_best=share)
    return ranked


def _score(
    nodes: NodeSet,
    evidence: Evidence,
    drawn: NodePosterior,
    algorithm: Algorithm,
    teacher: int | None,
    group: Group | None,
    min_coverage: float,
) -> Scored:
    scores = evidence.scores
    p = scores.student[algorithm.temperature] if algorithm.needs_teacher else scores.sampling
    if teacher is not None and not scores.teachers[teacher]:
        return Scored(teacher, algorithm, not_covered(drawn, p), None, None)
    t = None if teacher is None else scores.teachers[teacher][algorithm.temperature]
    observed = None
    if algorithm.form is Form.SAMPLED and evidence.observed is not None:
        observed = int(np.flatnonzero(scores.ids == evidence.observed)[0])
    key, sequel = (-1 if teacher is None else teacher, algorithm), evidence.sequel
    measured = measure(
        drawn,
        _in_units(algorithm, nodes.verifier),
        p,
        t,
        ids=scores.ids,
        observed=observed,
        advantage=_advantage(nodes, algorithm, group),
        reward_std=None if group is None or group.std == 0 else group.std,
        min_coverage=min_coverage,
        noise=0.0 if teacher is None else scores.noise[teacher],
        continuations=sequel.continuations.get(key),
        later=sequel.later.get(key),
        mean_reward=0.0 if group is None else group.mean,
        weight=sequel.weight.get(key, 1.0),
        covered_teacher=None if teacher is None else scores.listed[teacher],
    )
    divergence = None if t is None else _divergence(p, t)
    return Scored(teacher, algorithm, measured, divergence, sequel.weight.get(key))


def _in_units(algorithm: Algorithm, verifier: Verifier) -> Algorithm:
    """The algorithm for rewards in [0, 1] that adds as much as this one does of an objective's.

    GRPO's rewards are divided by their standard deviation, which has the same units.
    """
    if algorithm.reward_weight == 0.0 or algorithm.reward_loss is Loss.GRPO:
        return algorithm
    return replace(algorithm, reward_weight=algorithm.reward_weight * verifier.scale)


def _advantage(nodes: NodeSet, algorithm: Algorithm, group: Group | None) -> float | None:
    """The advantage of the observed trajectory in its group, for the sampled policy gradients."""
    if not algorithm.is_rewarded or group is None or nodes.trajectory is None:
        return None
    reward = nodes.trajectory.rewards[nodes.verifier.key]
    loss = algorithm.reward_loss if algorithm.needs_teacher else algorithm.loss
    if loss is Loss.DR_GRPO:
        return reward - group.mean
    return (reward - group.mean) / group.std if group.std > 0 else 0.0


def _divergence(p: NDArray[np.float64], t: NDArray[np.float64]) -> float | None:
    live = p > 0
    if np.any(t[live] <= 0):
        return None
    return max(0.0, math.fsum(p[live] * np.log(p[live] / t[live])))
