"""One growth at work: plan, sample, record, until the goal is reached or the budget spent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing

from sqlalchemy import Connection

from unmask_server.growth.plan import (
    Plan,
    PlanNode,
    candidate_counts,
    plan_equal,
    plan_free,
    plan_round,
)
from unmask_server.growth.recorder import Finished, Recorder, rollout_uid
from unmask_server.growth.sampler import Sampler, Wanted
from unmask_server.growth.spec import Allocation, Growth, GrowthSpec
from unmask_server.growth.store import GrowthStore, LeaseLostError
from unmask_server.growth.work import WorkPath, WorkReader
from unmask_server.tree import AddResult

FLUSH_ROLLOUTS = 256
"""Finished rollouts are committed when there are so many, ..."""
FLUSH_SECONDS = 0.5
"""... or when the oldest has waited so long: what a killed server loses at most."""
REUSE_ROUNDS = 3
"""After so many rounds the plan no longer counts on chance to fill deeper nodes."""
ROUND_ROLLOUTS = 1024
"""Without a goal, a round is about so many rollouts, in equal parts for all nodes, ..."""
ROUND_PER_NODE = 16
"""... but at least so many for each."""

Sampled = tuple[WorkPath, Finished, int]
"""A rollout, where it belongs, and how many tokens were sampled for it."""


class Rounds:
    """The work on one growth that is held. `run` may be called again after it failed."""

    def __init__(
        self,
        held: Growth,
        store: GrowthStore,
        work: WorkReader,
        sampler: Sampler,
        recorder: Recorder,
        on_progress: Callable[[], None],
    ) -> None:
        self._held = held
        self._store = store
        self._work = work
        self._sampler = sampler
        self._recorder = recorder
        self._on_progress = on_progress
        self._serial = 0
        self.rate: float | None = None
        """Rollouts a second, lately; None if not known yet."""
        self.stored = 0
        """Rollouts stored by this object."""

    async def run(self) -> None:
        """Go round until there is nothing left to do.

        Raises:
            LeaseLostError: the growth was cancelled, or another server has taken it over.

        """
        held, spec = self._held, self._held.spec
        paths = await self._work.prepare(spec)
        longest = max((path.nodes.policy.max_new_tokens for path in paths), default=1)
        number = 0
        while True:
            state = await self._work.read(paths)
            now = await asyncio.to_thread(self._store.get, held.id)
            plan = _next_plan(spec, paths, state, number, now)
            if now.rollouts_left is not None:
                plan = plan.cut(now.rollouts_left)
            planned = now.rollouts_sampled + plan.total
            if spec.rollouts_per_node == 0 and spec.max_rollouts is not None:
                planned = spec.max_rollouts
            if now.tokens_left is not None:
                # As many as fit, however long they get: all of them are waited for, because those
                # that finish first are the short ones and would speak for all.
                plan = plan.cut(max(1, now.tokens_left // longest)) if now.tokens_left else Plan()
            distinct = {node.key: node for row in state for node in row}
            untouched = number == 0 and now.rollouts_sampled == 0
            await asyncio.to_thread(
                self._store.note_plan,
                held,
                cached=_cached(spec, paths, state) if untouched else None,
                planned=planned,
                nodes=len(distinct),
                flat=sum(node.flat for node in distinct.values()),
            )
            self._on_progress()
            if not plan.total:
                return
            await self._sample(paths, plan)
            number += 1

    async def _sample(self, paths: Sequence[WorkPath], plan: Plan) -> None:
        """Sample a plan and store it as it comes in."""
        for items in self._wanted(paths, plan):
            policy = items[0][0].nodes.policy
            buffer: list[Sampled] = []
            flushed = time.monotonic()
            samples = self._sampler.sample(policy, [want for _, want in items])
            try:
                async with aclosing(samples):
                    async for index, finished, tokens in samples:
                        buffer.append((items[index][0], finished, tokens))
                        waited = time.monotonic() - flushed
                        if waited >= FLUSH_SECONDS or len(buffer) >= FLUSH_ROLLOUTS:
                            full, buffer = buffer, []
                            await self._flush(full)
                            flushed = time.monotonic()
                            pace = len(full) / max(waited, 1e-3)
                            self.rate = pace if self.rate is None else (3 * self.rate + pace) / 4
            finally:
                # Also when cancelled, or when the engine failed: what was sampled was paid for.
                if buffer:
                    await self._flush(buffer)

    def _wanted(self, paths: Sequence[WorkPath], plan: Plan) -> list[list[tuple[WorkPath, Wanted]]]:
        """The rollouts of a plan, by policy."""
        by_policy: dict[str, list[tuple[WorkPath, Wanted]]] = {}
        for p, i, token, count in plan.items:
            path = paths[p]
            forced = path.nodes.tokens[: path.nodes.positions[i]]
            if token is not None:
                forced = (*forced, token)
            for _ in range(count):
                uid = rollout_uid("growth", self._held.id, self._held.attempt, self._serial)
                self._serial += 1
                want = Wanted(uid, path.nodes.prompt, forced)
                by_policy.setdefault(path.nodes.policy.id, []).append((path, want))
        return list(by_policy.values())

    async def _flush(self, buffer: Sequence[Sampled]) -> None:
        task = asyncio.create_task(asyncio.to_thread(self._store_all, buffer))
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            await task
            raise
        self._on_progress()

    def _store_all(self, buffer: Sequence[Sampled]) -> None:
        by_tree: dict[int, list[Sampled]] = {}
        for item in buffer:
            by_tree.setdefault(item[0].tree.id, []).append(item)
        lost: LeaseLostError | None = None
        for items in by_tree.values():
            try:
                self._store_batch(items)
            except LeaseLostError as error:
                lost = error
        if lost is not None:
            raise lost

    def _store_batch(self, items: Sequence[Sampled]) -> None:
        path = items[0][0]
        tokens = {finished.uid: tokens for _, finished, tokens in items}

        def charge(connection: Connection, result: AddResult, _: object) -> None:
            new = [tokens[uid] for uid in result.inserted]
            self._store.charge(connection, self._held, len(new), sum(new))

        finished = [f for _, f, _ in items]
        nodes, tree, growth_id = path.nodes, path.tree, self._held.id
        record = self._recorder.record
        try:
            record(nodes.policy, nodes.question, tree, finished, growth_id=growth_id, then=charge)
        except LeaseLostError:
            # The growth is no longer ours, but its samples are as good as any.
            record(nodes.policy, nodes.question, tree, finished, growth_id=growth_id)
            raise
        self.stored += len(finished)


def _next_plan(
    spec: GrowthSpec,
    paths: Sequence[WorkPath],
    state: Sequence[Sequence[PlanNode]],
    number: int,
    now: Growth,
) -> Plan:
    """What to sample in round `number`; empty when there is nothing left to do."""
    goal = spec.rollouts_per_node
    plan = Plan()
    for forced in (False, True):
        # Paths are planned apart by kind, but keep their places.
        mine = [
            row if _is_forced(spec, path) == forced else []
            for path, row in zip(paths, state, strict=True)
        ]
        if goal == 0:
            part = plan_round(mine, _each(state, now), forced=forced)
        elif forced:
            part = plan_equal(mine, goal)
        else:
            part = plan_free(mine, goal, reuse=number < REUSE_ROUNDS)
        plan.items.extend(part.items)
    return plan


def _is_forced(spec: GrowthSpec, path: WorkPath) -> bool:
    return spec.allocation is Allocation.EQUAL and not path.free


def _each(state: Sequence[Sequence[PlanNode]], now: Growth) -> int:
    """Rollouts for each node in a round of a growth without a goal."""
    nodes = max(1, len({node.key for row in state for node in row if not node.flat}))
    each = max(ROUND_PER_NODE, ROUND_ROLLOUTS // nodes)
    left = now.rollouts_left
    return each if left is None else min(each, -(-left // nodes))


def _cached(
    spec: GrowthSpec, paths: Sequence[WorkPath], state: Sequence[Sequence[PlanNode]]
) -> int:
    """Rollouts that the nodes have already, as far as the goal wants them, over all nodes."""
    total = 0
    seen = set()
    for path, row in zip(paths, state, strict=True):
        for node in row:
            if node.flat or node.key in seen:
                continue
            seen.add(node.key)
            if _is_forced(spec, path):
                total += candidate_counts(node, spec.rollouts_per_node)
            else:
                total += min(node.valid, spec.rollouts_per_node or node.valid)
    return total
