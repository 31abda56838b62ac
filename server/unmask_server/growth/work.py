"""A growth's nodes: from targets to what a plan needs to know."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unmask_server.diagnosis import flat_bound
from unmask_server.growth.plan import PlanNode, forced_candidates
from unmask_server.growth.recorder import Recorder
from unmask_server.growth.spec import Allocation, GrowthSpec, Target
from unmask_server.nodes.demonstrations import Demonstrations
from unmask_server.nodes.evidence import EvidenceReader, Scores
from unmask_server.nodes.resolve import NodeSet, Resolver, VerifierRef
from unmask_server.tree import NodeCounts, SeenLengths, TreeRef, TreeStore, TreeView


@dataclass(frozen=True, slots=True)
class WorkNode:
    """What does not change about a node while it grows."""

    reach: float
    """Chance that a free rollout from here reaches the next node of the path."""
    bound: float
    """|g| is at most this."""
    is_asked: bool
    """Whether any alignment is wanted here: not where nothing is stored of the teachers."""
    candidates: NDArray[np.int32]
    exact: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class WorkPath:
    """The nodes of one target."""

    nodes: NodeSet
    tree: TreeRef
    scores: tuple[Scores, ...]
    work: tuple[WorkNode, ...]
    free: bool
    """Whether rollouts are free whatever the allocation, and no node is skipped."""

    def key(self, index: int) -> tuple[int, tuple[int, ...]]:
        """Equal for the same node reached through two targets."""
        return self.tree.id, self.nodes.tokens[: self.nodes.positions[index]]


class WorkReader:
    """Prepares a growth's paths and reads how far they are."""

    def __init__(
        self,
        resolver: Resolver,
        reader: EvidenceReader,
        demonstrations: Demonstrations,
        recorder: Recorder,
        trees: TreeStore,
    ) -> None:
        self._resolver = resolver
        self._reader = reader
        self._demonstrations = demonstrations
        self._recorder = recorder
        self._trees = trees

    async def prepare(self, spec: GrowthSpec) -> list[WorkPath]:
        """Resolve the targets and score their nodes (once for ever)."""
        paths = []
        for target in spec.targets:
            nodes = await asyncio.to_thread(self._resolve, target, spec)
            tree = await asyncio.to_thread(
                self._recorder.tree, nodes.policy, nodes.question, nodes.verifier
            )
            compared = spec.allocation is not Allocation.POLICY and not target.free
            teachers = (
                await asyncio.to_thread(self._resolver.teachers, spec.teacher_ids, nodes.policy)
                if compared
                else []
            )
            nodes = await self._demonstrations.attach(nodes, teachers)
            scores = await self._reader.scores(
                nodes, teachers, algorithms=spec.algorithms, top_k=spec.top_k
            )
            work = tuple(_work_node(nodes, i, scored, spec) for i, scored in enumerate(scores))
            paths.append(WorkPath(nodes, tree, tuple(scores), work, target.free))
        return paths

    def _resolve(self, target: Target, spec: GrowthSpec) -> NodeSet:
        if target.trajectory_id:
            return self._resolver.trajectory(
                target.trajectory_id,
                positions=None if target.position is None else [target.position],
                verifier=VerifierRef(spec.verifier),
                field="targets",
            )
        return self._resolver.prefix(
            target.policy_id,
            target.question_id,
            tokens=target.prefix,
            text=None,
            observed=target.observed,
            verifier=VerifierRef(spec.verifier),
            field="targets",
        )

    async def read(self, paths: Sequence[WorkPath]) -> list[TreeView]:
        """What the tree holds now at the paths' nodes."""
        return await asyncio.to_thread(lambda: [self._read(path) for path in paths])

    def _read(self, path: WorkPath) -> TreeView:
        nodes = path.nodes
        return self._trees.look_up(path.tree.id, nodes.tokens, nodes.positions, nodes.verifier.key)

    async def lengths(self, paths: Sequence[WorkPath]) -> dict[int, SeenLengths]:
        """How many tokens generations have, by tree: some that are known."""
        trees = {path.tree.id for path in paths}
        return await asyncio.to_thread(lambda: {tree: self._trees.lengths(tree) for tree in trees})


def _work_node(nodes: NodeSet, index: int, scored: Scores, spec: GrowthSpec) -> WorkNode:
    position = nodes.positions[index]
    candidates = forced_candidates(
        scored.ids,
        scored.sampling,
        [teacher[1.0] for teacher in scored.teachers if teacher],
        nodes.observed[index],
        spec.top_k,
    )
    last = position + 1 >= nodes.policy.max_new_tokens
    stops = np.asarray(nodes.policy.stop_ids, dtype=np.int32)
    reach = 0.0
    following = index + 1 < len(nodes.positions) and nodes.positions[index + 1] == position + 1
    if following:
        own = np.flatnonzero(scored.ids == nodes.tokens[position])
        reach = float(scored.sampling[own[0]]) if len(own) else 0.0
    return WorkNode(
        reach=reach,
        bound=flat_bound(scored.sampling),
        is_asked=(
            not scored.teachers
            or any(scored.teachers)
            or any(not a.needs_teacher for a in spec.algorithms)
        ),
        candidates=candidates,
        exact=np.isin(candidates, stops) | last,
    )


def plan_nodes(path: WorkPath, view: TreeView, *, flat_below: float) -> list[PlanNode]:
    """The nodes of a path as the simple plans see them.

    Args:
        path: whose.
        view: its counts.
        flat_below: a node whose |g| is certainly below this is skipped.

    """
    return [_plan_node(path, i, counts, flat_below) for i, counts in enumerate(view.nodes)]


def _plan_node(path: WorkPath, index: int, counts: NodeCounts, flat_below: float) -> PlanNode:
    nodes, work = path.nodes, path.work[index]
    position = nodes.positions[index]
    valid = dict(zip(counts.children.tokens.tolist(), counts.children.n.tolist(), strict=True))
    own = 0
    if nodes.trajectory is not None and nodes.trajectory.rollout_uid is not None:
        # The diagnosis leaves the trajectory's own rollout out; so does the plan.
        own = 1
        token = nodes.tokens[position]
        if token in valid and token not in nodes.policy.stop_ids:
            valid[token] -= 1
    return PlanNode(
        key=path.key(index),
        valid=counts.n - own,
        reach=work.reach,
        flat=not path.free and (work.bound < flat_below or not work.is_asked),
        candidates=work.candidates,
        candidate_valid=np.array(
            [valid.get(token, 0) for token in work.candidates.tolist()], dtype=np.int64
        ),
        candidate_exact=work.exact,
    )
