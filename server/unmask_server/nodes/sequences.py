"""What losses of whole sequences need beside a node: how rollouts and the trajectory go on, under
the student and under each teacher."""

from __future__ import annotations

import asyncio
import math
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from unmask_server.catalog import Catalog
from unmask_server.catalog.types import Teacher
from unmask_server.computing import compute
from unmask_server.diagnosis import Algorithm, Continuations, Form
from unmask_server.diagnosis.continuation import value
from unmask_server.diagnosis.families.minillm import own_clip
from unmask_server.engines.base import RAW
from unmask_server.nodes.distributions import Distribution, ScoreJob, Scorer
from unmask_server.nodes.evidence import Evidence
from unmask_server.nodes.resolve import NodeSet, shown_prompt
from unmask_server.nodes.rollout_scores import RolloutScorer
from unmask_server.nodes.sequel import Sequel
from unmask_server.tree import StoredRollout, TreeStore, VerifiersDifferError
from unmask_server.tree.ids import first_id

FloatArray = NDArray[np.float64]

PER_TOKEN = 32
"""Rollouts that are scored after each token of a node: its first ones."""
READ = 50_000
"""Rollouts of a tree that are looked at: its first ones."""
_KEPT = 200_000
"""Rollouts kept in memory, over all trees."""
_MOST_LOG_WEIGHT = 20.0
"""Cut of the logarithm of how much likelier a prefix is under the teacher."""


@dataclass(frozen=True, slots=True)
class _Followed:
    """A rollout that counts at a node of the path."""

    rollout: StoredRollout
    index: int
    """Of its token in the node's support."""


class SequenceReader:
    """Reads `Sequel`s; what they need is scored once."""

    def __init__(
        self, catalog: Catalog, scorer: Scorer, rollout_scorer: RolloutScorer, trees: TreeStore
    ) -> None:
        self._catalog = catalog
        self._scorer = scorer
        self._rollout_scorer = rollout_scorer
        self._trees = trees
        self._rollouts: OrderedDict[int, list[StoredRollout]] = OrderedDict()

    async def read(
        self,
        nodes: NodeSet,
        teachers: Sequence[Teacher],
        algorithms: Sequence[Algorithm],
        found: Sequence[Evidence],
        *,
        tree_id: int,
        rollouts: int,
        top_k: int,
    ) -> list[Sequel]:
        """One for each evidence.

        Args:
            nodes: whose.
            teachers: of the request.
            algorithms: of the request; most need nothing.
            found: evidence at the positions of `nodes`.
            tree_id: of the nodes' tree.
            rollouts: of the tree that count: its first ones, as `TreeView.rollouts` has it.
            top_k: of the request.

        """
        sequels = [Sequel() for _ in found]
        by_path = [a for a in algorithms if a.reads_path]
        if by_path and teachers:
            await self._add_paths(nodes, teachers, by_path, found, sequels, top_k)
        expected = [a for a in algorithms if a.is_sequential and a.form is Form.EXPECTED]
        if expected and teachers:
            held = await asyncio.to_thread(self._read, tree_id, rollouts, nodes.verifier.key)
            followed = await compute(_followed, nodes, found, held)
            ratios = await self._ratios(nodes, teachers, followed)
            await compute(_add_continuations, nodes, expected, found, followed, ratios, sequels)
        return sequels

    def _prompt(self, teacher: Teacher, nodes: NodeSet, index: int) -> tuple[int, ...]:
        room = max(len(nodes.tokens), nodes.policy.max_new_tokens)
        shown = nodes.demonstration
        return shown_prompt(self._catalog, teacher, nodes.question, room, index, shown)

    async def _add_paths(
        self,
        nodes: NodeSet,
        teachers: Sequence[Teacher],
        algorithms: Sequence[Algorithm],
        found: Sequence[Evidence],
        sequels: Sequence[Sequel],
        top_k: int,
    ) -> None:
        """What depends on the tokens of the path itself."""
        views = tuple(dict.fromkeys((RAW, nodes.policy.sampling)))
        positions = tuple(range(len(nodes.tokens)))

        def job(model_of: Teacher | None, index: int) -> ScoreJob:
            model = nodes.policy.model if model_of is None else model_of.model
            return ScoreJob(
                model=model,
                vocab_size=self._catalog.usable_vocab(model),
                prompt=nodes.prompt if model_of is None else self._prompt(model_of, nodes, index),
                tokens=nodes.tokens[:-1],
                positions=positions,
                views=views if model_of is None else (RAW,),
                top_k=top_k,
                also=tuple((token,) for token in nodes.tokens),
            )

        jobs = [job(None, 0), *(job(teacher, i) for i, teacher in enumerate(teachers))]
        student, *others = await asyncio.gather(*map(self._scorer.score, jobs))
        drawn = views.index(nodes.policy.sampling)
        own = _logprobs(student, 0, nodes.tokens)
        sampled = _logprobs(student, drawn, nodes.tokens)
        for k, scored in enumerate(others):
            theirs = _logprobs(scored, 0, nodes.tokens)
            # Of the first t tokens, at t.
            reach = np.concatenate([[0.0], np.cumsum(theirs - sampled)])
            for algorithm in algorithms:
                for at, sequel in zip(found, sequels, strict=True):
                    t = at.position
                    if algorithm.student_share < 1.0:
                        there = math.exp(min(float(reach[t]), _MOST_LOG_WEIGHT))
                        share = algorithm.student_share
                        sequel.weight[k, algorithm] = share + (1.0 - share) * there
                    if algorithm.is_sequential and nodes.trajectory is not None:
                        ratio = theirs - own
                        clipped = _cut(float(ratio[t]), own_clip(algorithm))
                        sequel.later[k, algorithm] = value(algorithm, clipped, ratio[t + 1 :])

    def _read(self, tree_id: int, number: int, verifier_key: int) -> list[StoredRollout]:
        """Those of a tree's first rollouts that are there: they go together, if they do."""
        held = self._rollouts.pop(tree_id, [])
        oldest = self._trees.oldest_id(tree_id)
        if oldest is None:
            return []
        # Verifiers may be added.
        if held and (held[0].id != oldest or any(verifier_key not in one.rewards for one in held)):
            held = []
        beyond = min(first_id(tree_id) + number, oldest + READ)
        if not held or held[-1].id < beyond - 1:
            after = held[-1].id if held else 0
            number = beyond - first_id(tree_id)
            held = held + self._trees.first_rollouts(tree_id, number, after)
        self._rollouts[tree_id] = held
        while len(self._rollouts) > 1 and sum(map(len, self._rollouts.values())) > _KEPT:
            self._rollouts.popitem(last=False)
        found = [one for one in held if one.id < beyond]
        if any(verifier_key not in one.rewards for one in found):
            raise VerifiersDifferError("rollouts were added that have no number")
        return found

    async def _ratios(
        self, nodes: NodeSet, teachers: Sequence[Teacher], followed: Sequence[Sequence[_Followed]]
    ) -> list[dict[int, FloatArray]]:
        """By teacher and rollout: log T - log P of the sampled tokens."""
        wanted = {one.rollout.id: one.rollout for at in followed for one in at}
        # Neighbours in this order share the longest prefixes.
        rollouts = sorted(wanted.values(), key=lambda rollout: rollout.tokens)

        async def score(teacher: Teacher | None, index: int) -> dict[int, FloatArray]:
            model = nodes.policy.model if teacher is None else teacher.model
            prompt = nodes.prompt if teacher is None else self._prompt(teacher, nodes, index)
            vocab = self._catalog.usable_vocab(model)
            return await self._rollout_scorer.score(model, vocab, prompt, rollouts)

        student = await score(None, 0)
        found = []
        for k, teacher in enumerate(teachers):
            theirs = await score(teacher, k)
            found.append({key: theirs[key] - student[key] for key in theirs})
        return found


def with_sequels(found: Sequence[Evidence], sequels: Sequence[Sequel]) -> list[Evidence]:
    """The evidence with what follows it."""
    return [replace(at, sequel=sequel) for at, sequel in zip(found, sequels, strict=True)]


def _logprobs(
    scored: Sequence[Sequence[Distribution]], view: int, tokens: Sequence[int]
) -> FloatArray:
    """Log-probability of each token, shape (tokens,)."""
    result = np.empty(len(tokens))
    for i, (at, token) in enumerate(zip(scored, tokens, strict=True)):
        distribution = at[view]
        place = np.flatnonzero(distribution.ids == token)
        result[i] = float(distribution.logprobs[place[0]]) if len(place) else -np.inf
    # Probability zero is stored as a finite number, too.
    return result.clip(-1e4, 0.0)


def _followed(
    nodes: NodeSet, found: Sequence[Evidence], rollouts: Sequence[StoredRollout]
) -> list[list[_Followed]]:
    """At each node, the rollouts whose continuation counts: the first few after each token."""
    path = np.asarray(nodes.tokens, dtype=np.int64)
    left_out = {nodes.trajectory.rollout_uid} if nodes.trajectory is not None else set()
    if nodes.demonstration is not None:
        left_out.add(nodes.demonstration.rollout.uid)
    places = [{int(token): j for j, token in enumerate(at.scores.ids)} for at in found]
    by_position = {at.position: i for i, at in enumerate(found)}
    taken: list[Counter[int]] = [Counter() for _ in found]
    result: list[list[_Followed]] = [[] for _ in found]
    for rollout in rollouts:
        if rollout.uid in left_out:
            continue
        tokens = np.asarray(rollout.tokens, dtype=np.int64)
        both = min(len(tokens), len(path))
        differ = np.flatnonzero(tokens[:both] != path[:both])
        shared = int(differ[0]) if len(differ) else both
        for t in range(max(0, rollout.forced_depth - 1), min(shared, len(tokens) - 1) + 1):
            i = by_position.get(t)
            if i is None:
                continue
            tail = len(found[i].scores.ids)
            j = places[i].get(int(tokens[t]), tail)
            is_forced = rollout.forced_depth > t
            # Only rollouts that drew their tail token themselves speak for the tail.
            if found[i].ends[j] or (j == tail and is_forced) or taken[i][j] >= PER_TOKEN:
                continue
            taken[i][j] += 1
            result[i].append(_Followed(rollout, j))
    return result


def _add_continuations(
    nodes: NodeSet,
    algorithms: Sequence[Algorithm],
    found: Sequence[Evidence],
    followed: Sequence[Sequence[_Followed]],
    ratios: Sequence[dict[int, FloatArray]],
    sequels: Sequence[Sequel],
) -> None:
    for at, counted, sequel in zip(found, followed, sequels, strict=True):
        token = np.array([one.index for one in counted], dtype=np.intp)
        rewards = np.array([one.rollout.rewards[nodes.verifier.key] for one in counted])
        p = at.scores.student[1.0]
        for k, by_rollout in enumerate(ratios):
            own = _own_ratio(p, at.scores.teachers[k][1.0])
            for algorithm in algorithms:
                cut = np.array([_cut(float(r), own_clip(algorithm)) for r in own])
                values = np.array(
                    [
                        value(algorithm, cut[one.index], _after(one.rollout, at, by_rollout))
                        for one in counted
                    ]
                )
                alone = np.array([value(algorithm, float(r), np.zeros(0)) for r in cut])
                sequel.continuations[k, algorithm] = Continuations.of(
                    token, values, rewards, at.ends, alone
                )


def _after(rollout: StoredRollout, at: Evidence, ratios: dict[int, FloatArray]) -> FloatArray:
    """Log-ratios of the tokens after the one that follows the node."""
    sampled = ratios.get(rollout.id)
    if sampled is None:
        return np.zeros(0)
    return sampled[at.position + 1 - rollout.forced_depth :]


def _own_ratio(p: FloatArray, t: FloatArray) -> FloatArray:
    """log T - log P, with the smallest probability there is for none."""
    ratio: FloatArray = np.log(np.maximum(t, 1e-300)) - np.log(np.maximum(p, 1e-300))
    return np.where(p > 0.0, ratio, 0.0)


def _cut(ratio: float, clip: float) -> float:
    return min(max(ratio, -clip), clip) if clip > 0.0 else ratio
