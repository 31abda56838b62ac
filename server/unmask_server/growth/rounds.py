"""One growth at work: plan, sample, record, until the goal is reached or the budget spent."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import aclosing

import structlog
from sqlalchemy import Connection

from unmask_server.growth.adaptive import AdaptivePlanner
from unmask_server.growth.plan import Item, Plan
from unmask_server.growth.planners import Planner, RoundPlanner
from unmask_server.growth.recorder import Finished, Recorder, rollout_uid
from unmask_server.growth.sampler import Sampler, Wanted
from unmask_server.growth.spec import Allocation, Growth
from unmask_server.growth.store import GrowthStore, LeaseLostError
from unmask_server.growth.work import WorkPath, WorkReader
from unmask_server.tree import AddResult

log = structlog.get_logger(__name__)

FLUSH_ROLLOUTS = 256
"""Finished rollouts are committed when there are so many, ..."""
FLUSH_SECONDS = 0.5
"""... or when the oldest has waited so long: what a killed server loses at most."""
AHEAD_LIMIT = 20.0
"""What the next halving would cost is simulated up to so many times what there is."""

Want = tuple[WorkPath, Wanted, Item]
"""A rollout to sample, and where it belongs."""
Sampled = tuple[WorkPath, Finished, int, Item]
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
        self._pending: Counter[Item] = Counter()
        self._moved = asyncio.Event()
        self._half_width: float | None = None
        self._flushed = time.monotonic()
        self.idle = 0.0
        """Seconds of planning in which nothing was being sampled."""
        self.rate: float | None = None
        """Rollouts a second, lately; None if not known yet."""
        self.stored = 0
        """Rollouts stored by this object."""

    async def run(self) -> None:
        """Go round until there is nothing left to do.

        Raises:
            LeaseLostError: the growth was cancelled, or another server has taken it over.

        """
        paths = await self._work.prepare(self._held.spec)
        begun = time.monotonic()
        planner = await self._planner(paths)
        longest = max((path.nodes.policy.max_new_tokens for path in paths), default=1)
        self._pending.clear()
        running: set[asyncio.Task[None]] = set()
        try:
            while True:
                plan = await self._plan(planner, longest)
                if not plan.total:
                    if not running:
                        break
                    await _any(running)
                else:
                    # Under way from here on, though the task has yet to start.
                    waiting = plan.counts()
                    self._pending.update(waiting)
                    running.add(asyncio.create_task(self._sample(paths, plan, waiting)))
                    await self._until(running, plan.total // 2 if planner.overlaps else 0)
                running = _still(running)
        finally:
            # Also when cancelled, or when the engine failed: what was sampled is stored.
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
        took = time.monotonic() - begun
        log.info(
            "growth sampled", growth=self._held.id, rollouts=self.stored,
            seconds=round(took, 2), planning=round(planner.seconds, 2), idle=round(self.idle, 2),
        )  # fmt: skip
        if isinstance(planner, AdaptivePlanner):
            await self._look_ahead(planner)

    async def _planner(self, paths: Sequence[WorkPath]) -> Planner:
        spec = self._held.spec
        if spec.allocation is not Allocation.ADAPTIVE:
            return RoundPlanner(spec, paths, self._work)
        return await AdaptivePlanner.over(spec, paths, self._work)

    async def _plan(self, planner: Planner, longest: int) -> Plan:
        """What to sample next within the budget, noted in the growth's row."""
        held = self._held
        begun = time.monotonic()
        # Taken before the row is read: what is stored in between counts twice at worst, never not
        # at all, or more would be sampled than was allowed.
        under_way = self._pending.copy()
        now = await asyncio.to_thread(self._store.get, held.id)
        found = await planner.next(now, under_way)
        plan, waiting = found.plan, under_way.total()
        if now.rollouts_left is not None:
            plan = plan.cut(max(0, now.rollouts_left - waiting))
        if now.tokens_left is not None:
            # As many as fit, however long they get: all of them are waited for, because those
            # that finish first are the short ones and would speak for all.
            room = now.tokens_left - waiting * longest
            least = 1 if now.tokens_left and not waiting else 0
            plan = plan.cut(max(least, room // longest))
        planned = now.rollouts_sampled + waiting + plan.total
        spec = held.spec
        if spec.rollouts_per_node == 0 and spec.objective is None and spec.max_rollouts is not None:
            planned = spec.max_rollouts
        untouched = now.rollouts_sampled == 0 and not waiting
        await asyncio.to_thread(
            self._store.note_plan,
            held,
            cached=found.cached if untouched else None,
            planned=planned,
            nodes=found.nodes,
            flat=found.flat,
            settled=found.settled,
            half_width=found.half_width,
        )
        self._half_width = found.half_width
        if not self._pending:
            self.idle += time.monotonic() - begun
        self._on_progress()
        return plan

    async def _until(self, running: set[asyncio.Task[None]], mark: int) -> None:
        """Wait until at most `mark` rollouts are under way, or a batch has ended."""
        while self._pending.total() > mark and not any(task.done() for task in running):
            self._moved.clear()
            wake = asyncio.ensure_future(self._moved.wait())
            try:
                await asyncio.wait({wake, *running}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                wake.cancel()

    async def _look_ahead(self, planner: AdaptivePlanner) -> None:
        """Say what the next halving of the interval would cost."""
        if not self._half_width:
            return
        now = await asyncio.to_thread(self._store.get, self._held.id)
        limit = AHEAD_LIMIT * max(1000, now.rollouts_sampled + now.rollouts_cached)
        ahead, _ = await planner.forecast(limit, half_width=self._half_width / 2.0, most=5)
        await asyncio.to_thread(self._store.note_next_halving, self._held, ahead)

    async def _sample(self, paths: Sequence[WorkPath], plan: Plan, waiting: Counter[Item]) -> None:
        """Sample a plan and store it as it comes in; `waiting` is what is not stored yet."""
        try:
            for items in self._wanted(paths, plan):
                await self._sample_policy(items, waiting)
        finally:
            self._pending.subtract(waiting)
            self._tidy()

    async def _sample_policy(self, items: Sequence[Want], waiting: Counter[Item]) -> None:
        policy = items[0][0].nodes.policy
        buffer: list[Sampled] = []
        flushed = time.monotonic()
        samples = self._sampler.sample(policy, [want for _, want, _ in items])
        try:
            async with aclosing(samples):
                async for index, finished, tokens in samples:
                    buffer.append((items[index][0], finished, tokens, items[index][2]))
                    waited = time.monotonic() - flushed
                    if waited >= FLUSH_SECONDS or len(buffer) >= FLUSH_ROLLOUTS:
                        full, buffer = buffer, []
                        await self._flush(full, waiting)
                        flushed = time.monotonic()
        finally:
            # Also when cancelled, or when the engine failed: what was sampled was paid for.
            if buffer:
                await self._flush(buffer, waiting)

    def _wanted(self, paths: Sequence[WorkPath], plan: Plan) -> list[list[Want]]:
        """The rollouts of a plan, by policy."""
        by_policy: dict[str, list[Want]] = {}
        for p, i, token, count in plan.items:
            path = paths[p]
            forced = path.nodes.tokens[: path.nodes.positions[i]]
            if token is not None:
                forced = (*forced, token)
            for _ in range(count):
                want = Wanted(self._next_uid(path, forced), path.nodes.prompt, forced)
                by_policy.setdefault(path.nodes.policy.id, []).append((path, want, (p, i, token)))
        return list(by_policy.values())

    def _next_uid(self, path: WorkPath, forced: tuple[int, ...]) -> bytes:
        """A new rollout's identity: its growth and number give the seed, its node the rest.

        With the node in it, growths of the same request_id on two servers name different rollouts
        differently, and their caches can be merged.
        """
        drawn = rollout_uid("growth", self._held.id, self._held.attempt, self._serial)
        self._serial += 1
        node = rollout_uid(path.nodes.policy.id, path.nodes.question.id, *forced)
        return drawn[:8] + node[8:]

    async def _flush(self, buffer: Sequence[Sampled], waiting: Counter[Item]) -> None:
        task = asyncio.create_task(asyncio.to_thread(self._store_all, buffer))
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            await task
            raise
        pace = len(buffer) / max(time.monotonic() - self._flushed, 1e-3)
        self.rate = pace if self.rate is None else (3 * self.rate + pace) / 4
        self._flushed = time.monotonic()
        stored = Counter(item for *_, item in buffer)
        waiting.subtract(stored)
        self._pending.subtract(stored)
        self._tidy()
        self._on_progress()

    def _tidy(self) -> None:
        # Only what is still under way.
        self._pending = +self._pending
        self._moved.set()

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
        tokens = {finished.uid: tokens for _, finished, tokens, _ in items}

        def charge(connection: Connection, result: AddResult, _: object) -> None:
            new = [tokens[uid] for uid in result.inserted]
            self._store.charge(connection, self._held, len(new), sum(new))

        finished = [f for _, f, _, _ in items]
        nodes, tree, growth_id = path.nodes, path.tree, self._held.id
        record = self._recorder.record
        try:
            record(nodes.policy, nodes.question, tree, finished, growth_id=growth_id, then=charge)
        except LeaseLostError:
            # The growth is no longer ours, but its samples are as good as any.
            record(nodes.policy, nodes.question, tree, finished, growth_id=growth_id)
            raise
        self.stored += len(finished)


async def _any(tasks: set[asyncio.Task[None]]) -> None:
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)


def _still(tasks: set[asyncio.Task[None]]) -> set[asyncio.Task[None]]:
    """Those that are not done; raises what one of the others raised."""
    for task in tasks:
        if task.done():
            task.result()
    return {task for task in tasks if not task.done()}
