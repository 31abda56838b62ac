"""What is known at a node: probabilities of student and teachers, and counted outcomes."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unmask_server.catalog import Catalog
from unmask_server.catalog.types import Model, Policy, Teacher
from unmask_server.diagnosis import Algorithm, Counts, Support, TopKOf, candidate_ids
from unmask_server.engines.base import Sampling
from unmask_server.nodes.distributions import Distribution, ScoreJob, Scorer
from unmask_server.nodes.resolve import NodeSet, shown_prompt
from unmask_server.nodes.sequel import NO_SEQUEL, Sequel
from unmask_server.nodes.stored import StoredTeachers, listed_mass, on_support
from unmask_server.nodes.teachers import teacher_views
from unmask_server.tree import FINISH_LENGTH, NodeCounts, TreeView

FloatArray = NDArray[np.float64]

NEGLIGIBLE = 1e-5
"""A token to which neither student nor any teacher gives so much, and that has no rollout, is no
candidate but part of the tail: it changes no number, and would cost as much as one that does.
What a loss of the k likeliest tokens names stays, see `Scores.named`."""


@dataclass(frozen=True, slots=True)
class Scores:
    """What the models say at a node.

    Arrays are over the m candidates and, last, the tail bucket of everything else.
    """

    ids: NDArray[np.int32]
    """Shape (m,): the student's likeliest in order, then the teachers', then the observed; in
    `Evidence` without those that are `NEGLIGIBLE`."""
    sampling: FloatArray
    """Shape (m + 1,): the policy's probabilities under its sampling settings, as rollouts draw."""
    student: dict[float, FloatArray]
    """By temperature, shape (m + 1,): the student's softmax, as a loss sees it."""
    teachers: tuple[dict[float, FloatArray], ...]
    """One a teacher, likewise; empty where nothing is stored of it here. Of a stored one only at
    temperature 1."""
    noise: tuple[float, ...]
    """One a teacher: how badly log(T / P) repeats, in nats, beyond float32's rounding."""
    listed: tuple[float | None, ...]
    """One a teacher: of a stored one, or its control, the mass of the tokens that are listed."""
    named: frozenset[int]
    """Candidates however unlikely: a loss of the k likeliest tokens names them."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything that a node's numbers are computed from."""

    position: int
    observed: int | None
    scores: Scores
    counts: Counts
    """Shape (m + 1,), tail last: rollouts as they were counted."""
    known: Counts
    """What the posterior is made from, as so many rollouts that succeed or fail: `counts`, each for
    what it tells (`NodeSet.dispersion`), except where more is known than was counted (`backup`)."""
    ends: NDArray[np.bool_]
    """Shape (m + 1,): tokens after which nothing is sampled, graded or not."""
    truncated: FloatArray
    """Shape (m + 1,): rollouts cut off by their limit; not counted for the tail."""
    sequel: Sequel = NO_SEQUEL
    """What losses of whole sequences need."""


class EvidenceReader:
    """Puts `Scores` and `Evidence` together."""

    def __init__(self, catalog: Catalog, scorer: Scorer, stored: StoredTeachers) -> None:
        self._catalog = catalog
        self._scorer = scorer
        self._stored = stored

    async def scores(
        self,
        nodes: NodeSet,
        teachers: Sequence[Teacher],
        *,
        algorithms: Sequence[Algorithm],
        top_k: int,
    ) -> list[Scores]:
        """Scores at every position of `nodes`, which cost a forward pass only the first time.

        Args:
            nodes: where.
            teachers: whose, beside the student's.
            algorithms: at these losses' temperatures and at 1; the likeliest tokens to which they
                are restricted are candidates.
            top_k: of the student's and of each teacher's likeliest tokens.

        """
        temperatures = dict.fromkeys((1.0, *(a.temperature for a in algorithms)))
        losses = tuple(Sampling(temperature=t) for t in temperatures)
        first_k = {
            of: max((a.top_k for a in algorithms if a.top_k_of is of), default=0) for of in TopKOf
        }
        policy = nodes.policy
        student_views = tuple(dict.fromkeys((policy.sampling, *losses)))
        # Controls are made from the student, and from teachers that are scored once for all.
        bases = dict.fromkeys(s for teacher in teachers if (s := teacher.scored) is not None)
        asked = [teacher for teacher in bases if teacher.stored is None]
        listed = [teacher for teacher in bases if teacher.stored is not None]
        prompts = await asyncio.to_thread(self._teacher_prompts, nodes, teachers, asked)
        said = dict(zip(listed, await self._stored.read(listed, nodes), strict=True))
        observed = tuple(() if o is None else (o,) for o in nodes.observed)
        student_job = self._job(policy.model, nodes.prompt, nodes, student_views, top_k, observed)
        teacher_jobs = [
            self._job(teacher.model, prompt, nodes, losses, top_k, observed)
            for teacher, prompt in zip(asked, prompts, strict=True)
        ]
        first = await asyncio.gather(*map(self._scorer.score, (student_job, *teacher_jobs)))
        student, rest = first[0], first[1:]
        sampling = student_views.index(policy.sampling)
        candidates: list[NDArray[np.int32]] = []
        named: list[set[int]] = []
        for i, taken in enumerate(nodes.observed):
            theirs = [
                *(scored[i] for scored in rest),
                *([there] for row in said.values() if (there := row[i]) is not None),
            ]
            tops = [(student[i][student_views.index(losses[0])], first_k[TopKOf.STUDENT])]
            tops += [(views[0], first_k[TopKOf.TEACHER]) for views in theirs]
            named.append({int(token) for said, k in tops for token in said.likeliest[:k]})
            candidates.append(_candidates(student[i], sampling, theirs, taken, named[i]))
        # Each model now says what it thinks of the others' candidates, where it has not already.
        also = tuple(tuple(ids.tolist()) for ids in candidates)
        second = await asyncio.gather(
            *(self._scorer.score(_with_also(job, also)) for job in (student_job, *teacher_jobs))
        )
        student, rest = second[0], second[1:]
        noise = tuple(
            math.hypot(policy.model.noise, t.scored.model.noise if t.scored in asked else 0.0)
            for t in teachers
        )
        found = []
        for i, ids in enumerate(candidates):
            mine = _by_temperature(student[i], student_views, losses, ids)
            told: dict[Teacher | None, dict[float, FloatArray]] = {
                teacher: _by_temperature(scored[i], losses, losses, ids)
                for teacher, scored in zip(asked, rest, strict=True)
            }
            masses: dict[Teacher | None, float] = {}
            for teacher, row in said.items():
                there = row[i]
                told[teacher] = {}
                if there is not None:
                    told[teacher][1.0] = on_support(there, ids, mine[1.0])
                    masses[teacher] = listed_mass(there)
            found.append(
                Scores(
                    ids,
                    sampling=student[i][sampling].probabilities(ids),
                    student=mine,
                    teachers=tuple(
                        teacher_views(teacher, mine, told.get(teacher.scored), nodes, i)
                        for teacher in teachers
                    ),
                    noise=noise,
                    listed=tuple(masses.get(teacher.scored) for teacher in teachers),
                    named=frozenset(named[i]),
                )
            )
        return found

    def _teacher_prompts(
        self, nodes: NodeSet, teachers: Sequence[Teacher], asked: Sequence[Teacher]
    ) -> list[tuple[int, ...]]:
        """The prompts of `asked`; an error names the place in the request, `teachers`."""
        first = {teacher.scored: i for i, teacher in reversed(list(enumerate(teachers)))}
        return [
            shown_prompt(
                self._catalog,
                teacher,
                nodes.question,
                len(nodes.tokens),
                first[teacher],
                nodes.demonstration,
            )
            for teacher in asked
        ]

    def _job(
        self,
        model: Model,
        prompt: tuple[int, ...],
        nodes: NodeSet,
        views: tuple[Sampling, ...],
        top_k: int,
        also: tuple[tuple[int, ...], ...],
    ) -> ScoreJob:
        return ScoreJob(
            model=model,
            vocab_size=self._catalog.usable_vocab(model),
            prompt=prompt,
            tokens=nodes.tokens[: nodes.positions[-1]] if nodes.positions else (),
            positions=nodes.positions,
            views=views,
            top_k=top_k,
            also=also,
        )


def _candidates(
    student: Sequence[Distribution],
    sampling: int,
    teachers: Sequence[Sequence[Distribution]],
    observed: int | None,
    named: Collection[int],
) -> NDArray[np.int32]:
    """A node's candidates, without those that cannot matter: nobody need be asked about them.

    Args:
        student: its distributions, by view.
        sampling: which of them rollouts are drawn from.
        teachers: each teacher's distributions, by temperature.
        observed: the token that was taken, if one was.
        named: as in `Scores`.

    """
    ids = candidate_ids(
        student[sampling].likeliest, [views[0].likeliest for views in teachers], observed
    )
    keep = _matters(
        [view.at_most(ids) for view in student],
        [view.at_most(ids) for views in teachers for view in views],
    )
    keep |= _is_in(ids, named)
    if observed is not None:
        keep |= ids == observed
    kept: NDArray[np.int32] = ids[keep]
    return kept


def evidence(nodes: NodeSet, scores: Sequence[Scores], view: TreeView) -> list[Evidence]:
    """Counts of the tree laid over the scores; a trajectory's own rollout is left out."""
    own_reward = None
    if nodes.trajectory is not None and nodes.trajectory.rollout_uid is not None:
        own_reward = nodes.trajectory.rewards[nodes.verifier.key]
    return [
        _evidence_at(nodes, i, scored, counts, own_reward)
        for i, (scored, counts) in enumerate(zip(scores, view.nodes, strict=True))
    ]


def _evidence_at(
    nodes: NodeSet, index: int, scored: Scores, counts: NodeCounts, own_reward: float | None
) -> Evidence:
    m = len(scored.ids)
    n, reward_sum, truncated = np.zeros(m + 1), np.zeros(m + 1), np.zeros(m + 1)
    children = counts.children
    place = {int(token): j for j, token in enumerate(scored.ids)}
    for k, token in enumerate(children.tokens.tolist()):
        j = place.get(token)
        if j is not None:
            n[j] += children.n[k]
            reward_sum[j] += children.reward_sum[k]
            truncated[j] += children.truncated[k]
        else:
            # Only rollouts that drew their tail token themselves speak for the tail as a whole.
            n[m] += children.free_n[k]
            reward_sum[m] += children.free_reward_sum[k]
    position = nodes.positions[index]
    keep = _worth_keeping(scored, n, nodes.observed[index])
    if not keep.all():
        scored = _narrowed(scored, keep)
        n, reward_sum, truncated = n[keep], reward_sum[keep], truncated[keep]
        m = len(scored.ids)
    ends = _ends(nodes.policy, scored, position)
    exact = ends & (n > 0)
    if own_reward is not None:
        j = Support(scored.ids).index(nodes.tokens[position])
        if not exact[j]:
            n[j] -= 1
            reward_sum[j] = max(0.0, reward_sum[j] - own_reward)
            if j < m and nodes.trajectory is not None and nodes.trajectory.finish == FINISH_LENGTH:
                truncated[j] -= 1
    shown = nodes.demonstration
    if shown is not None and _follows(shown.rollout.tokens, nodes.tokens, position):
        j = Support(scored.ids).index(shown.rollout.tokens[position])
        if not exact[j]:
            n[j] -= 1
            reward_sum[j] = max(0.0, reward_sum[j] - shown.rollout.rewards[nodes.verifier.key])
    counted = Counts(n=n, reward_sum=reward_sum, exact=exact)
    return Evidence(
        position=position,
        observed=nodes.observed[index],
        scores=scored,
        counts=counted,
        known=counted.worth(1.0 / nodes.dispersion),
        ends=ends,
        truncated=truncated,
    )


def _follows(tokens: Sequence[int], path: Sequence[int], position: int) -> bool:
    """Whether `tokens` go on from the first `position` tokens of `path`."""
    return len(tokens) > position and tuple(tokens[:position]) == tuple(path[:position])


def _matters(student: Sequence[FloatArray], teachers: Sequence[FloatArray]) -> NDArray[np.bool_]:
    """Where probabilities are not `NEGLIGIBLE`, or a teacher's is zero and the student's is not.

    What a teacher rules out makes a loss infinite, however unlikely it is.
    """
    mine = np.max(student, axis=0)
    keep: NDArray[np.bool_] = mine >= NEGLIGIBLE
    for theirs in teachers:
        keep |= (theirs >= NEGLIGIBLE) | ((theirs == 0.0) & (mine > 0.0))
    return keep


def _worth_keeping(scored: Scores, n: FloatArray, observed: int | None) -> NDArray[np.bool_]:
    """Which of the candidates (and the tail) are not `NEGLIGIBLE`; shape (m + 1,)."""
    keep = _matters(
        [scored.sampling, *scored.student.values()],
        [t for teacher in scored.teachers for t in teacher.values()],
    )
    keep |= n > 0
    keep[:-1] |= _is_in(scored.ids, scored.named)
    if observed is not None:
        keep[:-1] |= scored.ids == observed
    keep[-1] = True
    return keep


def _is_in(ids: NDArray[np.int32], some: Collection[int]) -> NDArray[np.bool_]:
    return np.isin(ids, np.fromiter(some, dtype=np.int32, count=len(some)))


def _narrowed(scored: Scores, keep: NDArray[np.bool_]) -> Scores:
    """The same over fewer candidates; what the others had goes to the tail."""

    def narrow(p: FloatArray) -> FloatArray:
        kept = p[keep]
        kept[-1] += p[~keep].sum()
        return kept

    return Scores(
        ids=scored.ids[keep[:-1]],
        sampling=narrow(scored.sampling),
        student={temperature: narrow(p) for temperature, p in scored.student.items()},
        teachers=tuple(
            {temperature: narrow(t) for temperature, t in teacher.items()}
            for teacher in scored.teachers
        ),
        noise=scored.noise,
        listed=scored.listed,
        named=scored.named,
    )


def _ends(policy: Policy, scored: Scores, position: int) -> NDArray[np.bool_]:
    """Candidates after which nothing is sampled: an end token, or the last one that has room.

    Their outcome is known once it was graded, however few rollouts there are.
    """
    known = np.zeros(len(scored.ids) + 1, dtype=bool)
    if position + 1 >= policy.max_new_tokens:
        known[:-1] = True
    else:
        # Several times faster than `np.isin` for the few that there are.
        for stop in policy.stop_ids:
            known[:-1] |= scored.ids == stop
    return known


def _with_also(job: ScoreJob, also: tuple[tuple[int, ...], ...]) -> ScoreJob:
    return ScoreJob(
        job.model, job.vocab_size, job.prompt, job.tokens, job.positions, job.views, job.top_k, also
    )


def _by_temperature(
    scored: Sequence[Distribution],
    views: Sequence[Sampling],
    losses: Sequence[Sampling],
    ids: NDArray[np.int32],
) -> dict[float, FloatArray]:
    return {loss.temperature: scored[views.index(loss)].probabilities(ids) for loss in losses}
