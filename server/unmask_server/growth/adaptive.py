"""ADAPTIVE: each batch where it lowers the requested uncertainty most per token."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from unmask_server import computing
from unmask_server.diagnosis.allocation import (
    CHECKS,
    LEAST_BATCH,
    Z90,
    Beliefs,
    Forecast,
    Objective,
    Sensitivity,
    Statistic,
    batch_size,
    believe,
    check,
    forecast,
    sensitivity,
    spend,
)
from unmask_server.growth.plan import Item, Plan, PlanNode, plan_free, plan_round
from unmask_server.growth.planners import REUSE_ROUNDS, ROUND_ROLLOUTS, Next
from unmask_server.growth.problem import Laid, Layout
from unmask_server.growth.spec import Growth, GrowthSpec
from unmask_server.growth.work import WorkPath, WorkReader, plan_nodes
from unmask_server.tree import SeenLengths, TreeView

WITHOUT_END = Objective(Statistic.COSINE, 1e-3)
"""What is made precise where nothing was asked for: the budget or the goal ends it."""


class AdaptivePlanner:
    """Plans ahead: rollouts under way count as what is expected of them."""

    overlaps = True

    def __init__(
        self,
        spec: GrowthSpec,
        paths: Sequence[WorkPath],
        work: WorkReader,
        lengths: Mapping[int, SeenLengths],
    ) -> None:
        self._spec = spec
        self._paths = paths
        self._work = work
        self._layout = Layout(spec, paths, lengths)
        self._objective = spec.objective or WITHOUT_END
        self._tightened: NDArray[np.float64] | float = 1.0
        self._checks = 0
        self._assured = False
        self._piloted = False
        self._batches = 0
        self.seconds = 0.0

    @classmethod
    async def over(
        cls, spec: GrowthSpec, paths: Sequence[WorkPath], work: WorkReader
    ) -> AdaptivePlanner:
        """A planner over paths that were prepared."""
        return cls(spec, paths, work, await work.lengths(paths))

    async def next(self, now: Growth, pending: Counter[Item]) -> Next:
        """See `Planner`."""
        views = await self._work.read(self._paths)
        return await computing.plan(self._timed, views, pending.copy())

    async def forecast(
        self, limit: float, *, half_width: float | None = None, most: int = 16
    ) -> tuple[Forecast, Next]:
        """What the objective will cost from here, and how far it is reached.

        Args:
            limit: rollouts after which a simulated growth is given up.
            half_width: another than the objective's.
            most: simulated growths.

        """
        views = await self._work.read(self._paths)
        objective = self._objective
        if half_width is not None:
            objective = replace(objective, half_width=half_width)

        def look() -> tuple[Forecast, Next]:
            laid = self._layout.lay(views, Counter())
            found = sensitivity(laid.problem, believe(laid.problem), objective)
            ahead = forecast(laid.problem, objective, limit=limit, most=most)
            return ahead, self._report(laid, found, Plan())

        return await computing.forecast(look)

    def _timed(self, views: Sequence[TreeView], pending: Counter[Item]) -> Next:
        begun = time.thread_time()
        try:
            return self._next(views, pending)
        finally:
            self.seconds += time.thread_time() - begun

    def _next(self, views: Sequence[TreeView], pending: Counter[Item]) -> Next:
        laid = self._layout.lay(views, pending)
        beliefs = believe(laid.problem)
        found = sensitivity(laid.problem, beliefs, self._objective, self._tightened)
        # Also while rollouts are under way, as what is expected of them: should more be needed, it
        # is planned before the engine is idle.
        if self._spec.objective is not None and found.done and not self._assured:
            found = self._checked(laid, beliefs, found)
        self._assured &= found.done
        plan = self._plan(laid, beliefs, found, views, pending)
        return self._report(laid, found, plan)

    def _plan(
        self,
        laid: Laid,
        beliefs: Beliefs,
        found: Sensitivity,
        views: Sequence[TreeView],
        pending: Counter[Item],
    ) -> Plan:
        plan = Plan([(*item, 1) for item in laid.ungraded])
        plan.items.extend(self._free(views, pending).items)
        if found.done:
            return plan
        pilot = self._pilot(views, pending)
        plan.items.extend(pilot.items)
        if pilot.total >= LEAST_BATCH or not laid.problem.nodes:
            return plan
        size = batch_size(laid.problem, beliefs, found)
        if self._spec.rollouts_per_node:
            open_ = max(1, laid.problem.nodes - int(self._flat(laid).sum()))
            lacking = self._spec.rollouts_per_node * open_ - self._counted(laid)
            size = min(size, int(lacking))
        if size > 0:
            given = spend(laid.problem, beliefs, found, rollouts=size, seed=self._batches)
            plan.items.extend(laid.plan(given).items)
            self._batches += 1
        return plan

    def _pilot(self, views: Sequence[TreeView], pending: Counter[Item]) -> Plan:
        """Free rollouts for nodes that have hardly any; they serve all nodes on their way."""
        goal = self._objective.pilot
        goal = min(goal, self._spec.rollouts_per_node or goal)
        if self._piloted:
            return Plan()
        rows = [
            [] if path.free else plan_nodes(path, view, flat_below=self._objective.flat_norm)
            for path, view in zip(self._paths, views, strict=True)
        ]
        self._piloted = all(node.flat or node.valid >= goal for row in rows for node in row)
        return plan_free(_with(rows, pending), goal, reuse=self._batches < REUSE_ROUNDS)

    def _free(self, views: Sequence[TreeView], pending: Counter[Item]) -> Plan:
        """Of questions as a whole."""
        rows = [
            plan_nodes(path, view, flat_below=0.0) if path.free else []
            for path, view in zip(self._paths, views, strict=True)
        ]
        if not any(rows):
            return Plan()
        if self._spec.rollouts_per_node:
            return plan_free(_with(rows, pending), self._spec.rollouts_per_node, reuse=False)
        each = -(-ROUND_ROLLOUTS // sum(map(bool, rows)))
        busy = any(self._paths[p].free for p, _, _ in pending)
        return Plan() if busy else plan_round(rows, each, forced=False)

    def _checked(self, laid: Laid, beliefs: Beliefs, found: Sensitivity) -> Sensitivity:
        """Ask the posteriors that are served, and be stricter where they are less sure.

        Where they are easily sure enough, they are not asked again at the very end.
        """
        objective = self._objective
        if not objective.statistic.is_of_nodes or self._checks >= CHECKS:
            return found
        self._checks += 1
        said = check(laid.problem, found, objective, self._tightened)
        self._tightened, self._assured = said.tightened, said.easily
        if said.passed:
            return found
        return sensitivity(laid.problem, beliefs, objective, said.tightened)

    def _report(self, laid: Laid, found: Sensitivity, plan: Plan) -> Next:
        problem = laid.problem
        if self._objective.statistic.is_of_nodes:
            settled = int(found.settled.all(axis=0).sum())
            mine = ~found.flat & (problem.weight > 0)
            if len(problem.steps):
                mine = problem.defined.any(axis=0) & mine
            widths = Z90 * np.sqrt(found.variance.max(axis=0, initial=0.0))[mine]
            half_width = float(np.quantile(widths, 0.9)) if len(widths) else None
        else:
            settled = problem.nodes if found.done else int(self._flat(laid).sum())
            half_width = Z90 * float(np.sqrt(found.variance.max(initial=0.0)))
        free = sum(path.free for path in self._paths)
        return Next(
            plan,
            nodes=problem.nodes + free,
            flat=int(self._flat(laid).sum()),
            cached=int(self._counted(laid)),
            settled=settled,
            half_width=half_width,
        )

    def _flat(self, laid: Laid) -> NDArray[np.bool_]:
        """Nodes that are flat whatever the data say."""
        result: NDArray[np.bool_] = laid.problem.bound < self._objective.flat_norm
        return result

    def _counted(self, laid: Laid) -> float:
        """Rollouts that count at the nodes that are not flat, over all of them."""
        counts = laid.problem.sums(laid.problem.n)
        return float(counts[~self._flat(laid)].sum())


def _with(rows: Sequence[Sequence[PlanNode]], pending: Counter[Item]) -> list[list[PlanNode]]:
    """The rows with free rollouts under way as if they were there."""
    coming: Counter[object] = Counter()
    for (p, i, token), number in pending.items():
        if token is None and i < len(rows[p]):
            coming[rows[p][i].key] += number
    found = []
    for row in rows:
        carried, here = 0.0, []
        for node in row:
            arriving = max(carried, float(coming[node.key]))
            here.append(replace(node, valid=node.valid + int(arriving)))
            carried = arriving * node.reach
        found.append(here)
    return found
