"""A growth's nodes: from targets to what the plan needs to know."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unmask_server.diagnosis import FLAT_TOLERANCE, flat_bound
from unmask_server.growth.plan import PlanNode, forced_candidates
from unmask_server.growth.recorder import Recorder
from unmask_server.growth.spec import Allocation, GrowthSpec, Target
from unmask_server.nodes.evidence import EvidenceReader, Scores
from unmask_server.nodes.resolve import NodeSet, Resolver
from unmask_server.tree import TreeRef, TreeStore, TreeView


@dataclass(frozen=True, slots=True)
class WorkNode:
    """What does not change about a node while it grows."""

    reach: float
    """Chance that a free rollout from here reaches the next node of the path."""
    flat: bool
    candidates: NDArray[np.int32]
    exact: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class WorkPath:
    """The nodes of one target."""

    nodes: NodeSet
    tree: TreeRef
    work: tuple[WorkNode, ...]
    free: bool
    """Whether rollouts are free whatever the allocation."""


class WorkReader:
    """Prepares a growth's paths and reads how far they are."""

    def __init__(
        self, resolver: Resolver, reader: EvidenceReader, recorder: Recorder, trees: TreeStore
    ) -> None:
        self._resolver = resolver
        self._reader = reader
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
            forced = spec.allocation is Allocation.EQUAL and not target.free
            teachers = (
                await asyncio.to_thread(self._resolver.teachers, spec.teacher_ids, nodes.policy)
                if forced
                else []
            )
            scores = await self._reader.scores(
                nodes, teachers, temperatures=(1.0,), top_k=spec.top_k
            )
            work = tuple(
                _work_node(nodes, i, scored, spec, skip_flat=not target.free)
                for i, scored in enumerate(scores)
            )
            paths.append(WorkPath(nodes, tree, work, target.free))
        return paths

    def _resolve(self, target: Target, spec: GrowthSpec) -> NodeSet:
        if target.trajectory_id:
            return self._resolver.trajectory(
                target.trajectory_id,
                positions=None if target.position is None else [target.position],
                verifier=spec.verifier,
                field="targets",
            )
        return self._resolver.prefix(
            target.policy_id,
            target.question_id,
            tokens=target.prefix,
            text=None,
            observed=target.observed,
            verifier=spec.verifier,
            field="targets",
        )

    async def read(self, paths: Sequence[WorkPath]) -> list[list[PlanNode]]:
        """The paths as the plan sees them, by what the tree holds now."""
        return [await asyncio.to_thread(self._read_path, path) for path in paths]

    def _read_path(self, path: WorkPath) -> list[PlanNode]:
        nodes = path.nodes
        view = self._trees.look_up(path.tree.id, nodes.tokens, nodes.positions, nodes.verifier.key)
        return [_plan_node(path, i, view) for i in range(len(nodes.positions))]


def _work_node(
    nodes: NodeSet, index: int, scored: Scores, spec: GrowthSpec, *, skip_flat: bool
) -> WorkNode:
    position = nodes.positions[index]
    candidates = forced_candidates(
        scored.ids,
        scored.sampling,
        [teacher[1.0] for teacher in scored.teachers],
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
    bound = flat_bound(scored.sampling)
    return WorkNode(
        reach=reach,
        flat=skip_flat and bound < FLAT_TOLERANCE,
        candidates=candidates,
        exact=np.isin(candidates, stops) | last,
    )


def _plan_node(path: WorkPath, index: int, view: TreeView) -> PlanNode:
    nodes, work, counts = path.nodes, path.work[index], view.nodes[index]
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
        key=(path.tree.id, nodes.tokens[:position]),
        valid=counts.n - own,
        reach=work.reach,
        flat=work.flat,
        candidates=work.candidates,
        candidate_valid=np.array(
            [valid.get(token, 0) for token in work.candidates.tolist()], dtype=np.int64
        ),
        candidate_exact=work.exact,
    )
