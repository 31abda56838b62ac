"""Deciding what a growth samples next: the simple allocations here, `adaptive` beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from unmask_server.diagnosis import FLAT_TOLERANCE
from unmask_server.growth.plan import (
    Item,
    Plan,
    PlanNode,
    candidate_counts,
    plan_equal,
    plan_free,
    plan_round,
    plan_windows,
    window_goals,
)
from unmask_server.growth.spec import Allocation, Growth, GrowthSpec
from unmask_server.growth.work import WorkPath, WorkReader, plan_nodes

REUSE_ROUNDS = 3
"""After so many rounds a plan no longer counts on chance to fill deeper nodes."""
ROUND_ROLLOUTS = 1024
"""Without a goal, a round is about so many rollouts, in equal parts for all nodes, ..."""
ROUND_PER_NODE = 16
"""... but at least so many for each."""


@dataclass(frozen=True, slots=True)
class Next:
    """What to do now, and how far the growth is."""

    plan: Plan
    """Empty: nothing to do now, and nothing at all if nothing is under way."""
    nodes: int
    flat: int
    """Of them skipped."""
    cached: int
    """Rollouts that the nodes have, as far as the goal wants them."""
    settled: int = 0
    half_width: float | None = None


class Planner(Protocol):
    """Plans a growth batch by batch."""

    overlaps: bool
    """Whether a plan may be made while rollouts of the one before are under way."""
    seconds: float
    """A thread's time that planning took, without reading the database."""

    async def next(self, now: Growth, pending: Counter[Item]) -> Next:
        """The next batch, given what is stored and what is under way."""
        ...


class RoundPlanner:
    """EQUAL, POLICY and DEPTH_WINDOWS: in rounds, each from what the one before left to do."""

    overlaps = False

    def __init__(self, spec: GrowthSpec, paths: Sequence[WorkPath], work: WorkReader) -> None:
        self._spec = spec
        self._paths = paths
        self._work = work
        self._round = 0
        self.seconds = 0.0

    async def next(self, now: Growth, pending: Counter[Item]) -> Next:
        """See `Planner`."""
        views = await self._work.read(self._paths)
        state = [
            plan_nodes(path, view, flat_below=FLAT_TOLERANCE)
            for path, view in zip(self._paths, views, strict=True)
        ]
        plan = self._plan(state, now)
        self._round += 1
        distinct = {node.key: node for row in state for node in row}
        return Next(
            plan,
            nodes=len(distinct),
            flat=sum(node.flat for node in distinct.values()),
            cached=self._cached(state),
        )

    def _plan(self, state: Sequence[Sequence[PlanNode]], now: Growth) -> Plan:
        goal, plan = self._spec.rollouts_per_node, Plan()
        for kind in (Allocation.POLICY, Allocation.EQUAL, Allocation.DEPTH_WINDOWS):
            # Paths are planned apart by kind, but keep their places.
            mine = [
                row if self._kind(path) is kind else []
                for path, row in zip(self._paths, state, strict=True)
            ]
            if goal == 0:
                forced = kind is not Allocation.POLICY
                part = plan_round(mine, _each(state, now), forced=forced)
            elif kind is Allocation.EQUAL:
                part = plan_equal(mine, goal)
            elif kind is Allocation.DEPTH_WINDOWS:
                part = plan_windows(mine, goal)
            else:
                part = plan_free(mine, goal, reuse=self._round < REUSE_ROUNDS)
            plan.items.extend(part.items)
        return plan

    def _kind(self, path: WorkPath) -> Allocation:
        return Allocation.POLICY if path.free else self._spec.allocation

    def _cached(self, state: Sequence[Sequence[PlanNode]]) -> int:
        goal, total, seen = self._spec.rollouts_per_node, 0, set()
        for path, row in zip(self._paths, state, strict=True):
            kind = self._kind(path)
            shares = [goal] * len(row)
            if kind is Allocation.DEPTH_WINDOWS and goal:
                shares = window_goals(row, goal)
            for node, share in zip(row, shares, strict=True):
                if node.flat or node.key in seen:
                    continue
                seen.add(node.key)
                if kind is Allocation.POLICY:
                    total += min(node.valid, share or node.valid)
                else:
                    total += candidate_counts(node, share)
        return total


def _each(state: Sequence[Sequence[PlanNode]], now: Growth) -> int:
    """Rollouts for each node in a round of a growth without a goal."""
    nodes = max(1, len({node.key for row in state for node in row if not node.flat}))
    each = max(ROUND_PER_NODE, ROUND_ROLLOUTS // nodes)
    left = now.rollouts_left
    return each if left is None else min(each, -(-left // nodes))
