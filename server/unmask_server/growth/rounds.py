"""One growth at work: plan, sample, record, until the goal is reached or the budget spent."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import aclosing

import structlog

from unmask_server.growth.adaptive import AdaptivePlanner
from unmask_server.growth.flushing import Put, flushed, to_its_end
from unmask_server.growth.plan import Item, Plan
from unmask_server.growth.planners import Planner, RoundPlanner
from unmask_server.growth.recorder import Recorder, rollout_uid
from unmask_server.growth.sampler import Sampler, Wanted
from unmask_server.growth.slices import SLICE_ROLLOUTS
from unmask_server.growth.spec import Allocation, Growth
from unmask_server.growth.store import GrowthStore
from unmask_server.growth.storing import Sampled, Storing
from unmask_server.growth.turns import Turns
from unmask_server.growth.work import WorkPath, WorkReader
from unmask_server.telemetry import metrics, tracing

log = structlog.get_logger(__name__)

TURN_SECONDS = 2.0
"""A growth keeps its turn so long though another growth waits for it."""
ASK_SECONDS = 0.25
"""How often a waiting growth asks whether it is its turn, where nothing wakes it."""
LOOK_SECONDS = 1.0
"""How often a waiting growth looks at what the one before it has sampled."""
AHEAD_LIMIT = 20.0
"""What the next halving would cost is simulated up to so many times what there is."""

Want = tuple[WorkPath, Wanted, Item]
"""A rollout to sample, and where it belongs."""


class Rounds:
    """The work on one growth that is held. `run` may be called again after it failed."""

    def __init__(
        self,
        held: Growth,
        store: GrowthStore,
        work: WorkReader,
        sampler: Sampler,
        recorder: Recorder,
        turns: Turns,
        on_progress: Callable[[], None],
    ) -> None:
        self._held = held
        self._spec = held.spec
        self._planner: Planner | None = None
        self._store = store
        self._turns = turns
        self._work = work
        self._sampler = sampler
        self._storing = Storing(held, store, recorder)
        self._on_progress = on_progress
        self._serial = 0
        self._pending: Counter[Item] = Counter()
        self._moved = asyncio.Event()
        self._turn_ends = False
        self._turn_began = 0.0
        self._half_width: float | None = None
        self._flushed = time.monotonic()
        self._counted = 0.0
        self._cached = 0
        self.idle = 0.0
        """Seconds of planning in which nothing was being sampled."""
        self.rate: float | None = None
        """Rollouts a second, lately; None if not known yet."""
        self.stored = 0
        """Rollouts stored by this object."""
        self.revision = held.revision
        """Of the spec that was worked on last."""

    async def run(self) -> None:
        """Go round until there is nothing left to do.

        Raises:
            LeaseLostError: the growth was paused or cancelled, or another server has taken it over.

        """
        paths = await self._work.prepare(self._spec)
        begun = self._counted = time.monotonic()
        self._planner = planner = await self._new_planner(paths)
        longest = max((path.nodes.policy.max_new_tokens for path in paths), default=1)
        self._pending.clear()
        running: set[asyncio.Task[None]] = set()
        try:
            while await self._has_work(paths, longest):
                with tracing.span("growth.plan"):
                    plan, planner = await self._plan(paths, longest)
                if not plan.total:
                    if not running:
                        break
                    await _any(running)
                else:
                    # Under way from here on, though the task has yet to start.
                    waiting = plan.counts()
                    self._pending.update(waiting)
                    running = _still(running)
                    running.add(asyncio.create_task(self._sample(paths, plan, waiting)))
                    if planner.overlaps:
                        await self._until(running, plan.total // 2)
                # To the very end: a task is not done when its last rollout is stored.
                while running and (self._turn_ends or not planner.overlaps):
                    await _any(running)
                    running = _still(running)
                running = _still(running)
                if self._turn_ends:
                    await self._turns.give_up(self._held, again=True)
        finally:
            # Also when cancelled, or when the engine failed: what was sampled is stored.
            for task in running:
                task.cancel()
            await to_its_end(self._leave(running))
        took = time.monotonic() - begun
        log.info(
            "growth sampled", rollouts=self.stored,
            seconds=round(took, 2), planning=round(planner.seconds, 2), idle=round(self.idle, 2),
        )  # fmt: skip
        if isinstance(planner, AdaptivePlanner):
            await self._look_ahead(planner)

    async def _leave(self, running: set[asyncio.Task[None]]) -> None:
        """Give the turn up when all that runs has ended, whatever with."""
        await asyncio.gather(*running, return_exceptions=True)
        self._count_work()
        await self._turns.give_up(self._held, again=False)

    async def _has_work(self, paths: Sequence[WorkPath], longest: int) -> bool:
        """Wait for the turn; whether anything was left to do when it came.

        What another growth samples meanwhile is this one's progress, too.
        """
        looked: float | None = None
        if not await self._turns.take(self._held):
            self._count_work()
            with metrics.GROWTHS_WAITING.track_inprogress():
                while looked is None or not await self._turns.take(self._held):
                    if looked is None or time.monotonic() - looked >= LOOK_SECONDS:
                        plan, _ = await self._plan(paths, longest, is_look=True)
                        if not plan.total:
                            return False
                        looked = time.monotonic()
                    await self._turns.wait(ASK_SECONDS)
            self._counted = time.monotonic()
        if looked is not None or not self._turn_began or self._turn_ends:
            self._turn_began = time.monotonic()
        self._turn_ends = False
        return True

    async def _new_planner(self, paths: Sequence[WorkPath]) -> Planner:
        if self._spec.allocation is not Allocation.ADAPTIVE:
            return RoundPlanner(self._spec, paths, self._work)
        return await AdaptivePlanner.over(self._spec, paths, self._work)

    async def _plan(
        self, paths: Sequence[WorkPath], longest: int, *, is_look: bool = False
    ) -> tuple[Plan, Planner]:
        """What to sample next within the budget, noted in the growth's row, and by whom planned.

        A look is planned by a planner of its own: it is no round of the one that samples.
        """
        held = self._held
        begun = time.monotonic()
        # Taken before the row is read: what is stored in between counts twice at worst, never not
        # at all, or more would be sampled than was allowed.
        under_way = self._pending.copy()
        now = await asyncio.to_thread(self._store.get, held.id)
        if now.revision != self.revision:
            self._spec, self.revision, self._planner = now.spec, now.revision, None
        planner = None if is_look else self._planner
        if planner is None:
            planner = await self._new_planner(paths)
            self._planner = self._planner if is_look else planner
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
        spec = now.spec
        if spec.rollouts_per_node == 0 and spec.objective is None and spec.max_rollouts is not None:
            planned = spec.max_rollouts
        untouched = now.rollouts_sampled == 0 and not waiting
        await asyncio.to_thread(
            self._store.note_plan,
            held,
            cached=found.cached if untouched else None,
            counted=found.cached,
            planned=planned,
            nodes=found.nodes,
            flat=found.flat,
            settled=found.settled,
            half_width=found.half_width,
        )
        self._half_width = found.half_width
        took = time.monotonic() - begun
        if not self._pending:
            self.idle += took
        if not is_look:
            self._count_plan(took, found.cached if untouched else 0)
        self._on_progress()
        return plan, planner

    def _count_plan(self, took: float, cached: int) -> None:
        metrics.GROWTH_PLANNING_SECONDS.inc(took)
        if not self._pending:
            metrics.GROWTH_IDLE_SECONDS.inc(took)
        # What is there before the first batch, planned for perhaps more than once.
        metrics.GROWTH_CACHED.inc(max(0, cached - self._cached))
        self._cached = max(self._cached, cached)
        self._count_work()

    def _count_work(self) -> None:
        now = time.monotonic()
        metrics.GROWTH_WORK_SECONDS.inc(now - self._counted)
        self._counted = now

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
                for start in range(0, len(items), SLICE_ROLLOUTS):
                    if self._turn_ends:
                        # The rest is planned anew when it is this growth's turn again.
                        return
                    part = items[start : start + SLICE_ROLLOUTS]
                    with tracing.span("growth.sample", rollouts=len(part)):
                        await self._sample_policy(part, waiting)
        finally:
            self._pending.subtract(waiting)
            self._tidy()

    async def _sample_policy(self, items: Sequence[Want], waiting: Counter[Item]) -> None:
        async def sample(put: Put[Sampled]) -> None:
            wanted = [want for _, want, _ in items]
            samples = self._sampler.sample(items[0][0].nodes.policy, wanted)
            async with aclosing(samples):
                async for index, finished, tokens in samples:
                    await put((items[index][0], finished, tokens, items[index][2]))

        await flushed(sample, lambda batch: self._flush(batch, waiting))

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
        with tracing.span("growth.store", rollouts=len(buffer)):
            await asyncio.to_thread(self._storing.store, buffer)
        self.stored += len(buffer)
        metrics.GROWTH_BATCHES.inc()
        metrics.GROWTH_SAMPLED.inc(len(buffer))
        metrics.GROWTH_TOKENS.inc(sum(tokens for _, _, tokens, _ in buffer))
        self._count_work()
        pace = len(buffer) / max(time.monotonic() - self._flushed, 1e-3)
        self.rate = pace if self.rate is None else (3 * self.rate + pace) / 4
        self._flushed = time.monotonic()
        stored = Counter(item for *_, item in buffer)
        waiting.subtract(stored)
        self._pending.subtract(stored)
        self._tidy()
        self._on_progress()
        if not self._turn_ends and time.monotonic() - self._turn_began >= TURN_SECONDS:
            self._turn_ends = await self._turns.is_wanted(self._held)

    def _tidy(self) -> None:
        # Only what is still under way.
        self._pending = +self._pending
        self._moved.set()


async def _any(tasks: set[asyncio.Task[None]]) -> None:
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)


def _still(tasks: set[asyncio.Task[None]]) -> set[asyncio.Task[None]]:
    """Those that are not done; raises what one of the others raised."""
    for task in tasks:
        if task.done():
            task.result()
    return {task for task in tasks if not task.done()}
