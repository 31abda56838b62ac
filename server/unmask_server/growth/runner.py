"""Works on growths: plan, sample, record, until the goal is reached or the budget spent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import aclosing

import structlog
from sqlalchemy import Connection

from unmask_server.growth.plan import Plan, PlanNode, plan_equal, plan_free, plan_round
from unmask_server.growth.recorder import Finished, Recorder, rollout_uid
from unmask_server.growth.sampler import Sampler, Wanted
from unmask_server.growth.spec import Allocation, Growth, GrowthSpec, State
from unmask_server.growth.store import LEASE_SECONDS, GrowthStore, LeaseLostError
from unmask_server.growth.work import WorkPath, WorkReader
from unmask_server.tree import AddResult

log = structlog.get_logger(__name__)

FLUSH_ROLLOUTS = 256
"""Finished rollouts are committed when there are so many, ..."""
FLUSH_SECONDS = 0.5
"""... or when the oldest has waited so long: what a killed server loses at most."""
REUSE_ROUNDS = 3
"""After so many rounds the plan no longer counts on chance to fill deeper nodes."""
ROUND_PER_NODE = 16
"""Without a goal, each round gives every node at most so many rollouts."""


class GrowthRunner:
    """Runs this server's growths as tasks of the event loop, and tells how far they are."""

    def __init__(
        self,
        store: GrowthStore,
        work: WorkReader,
        sampler: Sampler,
        recorder: Recorder,
        *,
        owner: str,
    ) -> None:
        self._store = store
        self._work = work
        self._sampler = sampler
        self._recorder = recorder
        self._owner = owner
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._moved: dict[str, asyncio.Event] = {}
        self._rates: dict[str, float] = {}
        self._keeper: asyncio.Task[None] | None = None

    def start_keeper(self) -> None:
        """Keep leases alive, and take over growths whose server is gone."""
        self._keeper = asyncio.create_task(self._keep())

    async def start(self, request_id: str, spec: GrowthSpec) -> Growth:
        """Start a growth, or find the one of that request_id.

        Raises:
            AlreadyExists: the request_id belongs to another spec.

        """
        growth = await asyncio.to_thread(self._store.create, request_id, spec)
        if not growth.state.ended:
            await self._take(growth.id)
        return growth

    async def get(self, growth_id: str) -> Growth:
        """One growth, as committed."""
        return await asyncio.to_thread(self._store.get, growth_id)

    async def page(self, size: int, before: tuple[float, str] | None) -> list[Growth]:
        """See `GrowthStore.page`."""
        return await asyncio.to_thread(self._store.page, size, before)

    def seconds_left(self, growth: Growth) -> float | None:
        """Rough time to a growth's end, from its pace on this server."""
        rate = self._rates.get(growth.id)
        if growth.state.ended or not rate:
            return None
        return max(0, growth.rollouts_planned - growth.rollouts_sampled) / rate

    async def watch(self, growth_id: str) -> AsyncIterator[Growth]:
        """The growth now and at every change, to its end."""
        last: Growth | None = None
        while True:
            moved = self._moved.get(growth_id)
            growth = await self.get(growth_id)
            if growth != last:
                last = growth
                yield growth
            if growth.state.ended:
                return
            # Another server's growth is seen by asking again.
            try:
                async with asyncio.timeout(FLUSH_SECONDS):
                    await (moved.wait() if moved is not None else asyncio.sleep(FLUSH_SECONDS))
            except TimeoutError:
                continue

    async def cancel(self, growth_id: str) -> Growth:
        """Stop a growth, keeping what was sampled."""
        await self.get(growth_id)
        if (task := self._tasks.get(growth_id)) is not None:
            task.cancel()
            await asyncio.wait([task])
        return await asyncio.to_thread(self._store.cancel, growth_id)

    async def close(self) -> None:
        """Stop working; another server, or the next start of this one, goes on."""
        tasks = [*self._tasks.values(), *([self._keeper] if self._keeper else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.to_thread(self._store.release, self._owner)

    async def _keep(self) -> None:
        while True:
            try:
                for growth_id in await asyncio.to_thread(self._store.claimable):
                    await self._take(growth_id)
                await asyncio.sleep(LEASE_SECONDS / 6)
                if self._tasks:
                    await asyncio.to_thread(self._store.renew, self._owner)
            except Exception:
                log.exception("looking after growths failed; trying again")
                await asyncio.sleep(LEASE_SECONDS / 6)

    async def _take(self, growth_id: str) -> None:
        if growth_id in self._tasks:
            return
        held = await asyncio.to_thread(self._store.claim, growth_id, self._owner)
        if held is None or growth_id in self._tasks:
            return
        self._moved[growth_id] = asyncio.Event()
        task = asyncio.create_task(self._run(held))
        self._tasks[growth_id] = task
        task.add_done_callback(lambda _: self._forget(growth_id))

    def _forget(self, growth_id: str) -> None:
        self._tasks.pop(growth_id, None)
        self._rates.pop(growth_id, None)
        self._wake(growth_id)
        self._moved.pop(growth_id, None)

    def _wake(self, growth_id: str) -> None:
        if (event := self._moved.get(growth_id)) is not None:
            event.set()
            self._moved[growth_id] = asyncio.Event()

    async def _run(self, held: Growth) -> None:
        try:
            await self._rounds(held)
            await asyncio.to_thread(self._store.finish, held, State.SUCCEEDED)
            log.info("growth done", growth=held.id)
        except LeaseLostError:
            log.info("growth left: cancelled elsewhere, or taken over", growth=held.id)
        except Exception as error:
            log.exception("growth failed", growth=held.id)
            try:
                await asyncio.to_thread(self._store.finish, held, State.FAILED, str(error))
            except LeaseLostError:
                return

    async def _rounds(self, held: Growth) -> None:
        paths = await self._work.prepare(held.spec)
        spec = held.spec
        serial = 0
        first = held.attempt == 1
        for number in range(1_000_000):
            state = await self._work.read(paths)
            now = await self.get(held.id)
            plan = _next_plan(spec, paths, state, number, now)
            if now.rollouts_left is not None:
                plan = plan.cut(now.rollouts_left)
            distinct = {node.key: node for row in state for node in row}
            planned = plan.total + now.rollouts_sampled
            if spec.rollouts_per_node == 0 and spec.max_rollouts is not None:
                planned = spec.max_rollouts
            await asyncio.to_thread(
                self._store.note_plan,
                held,
                cached=_cached(spec, distinct.values()) if first and number == 0 else None,
                planned=planned,
                nodes=len(distinct),
                flat=sum(node.flat for node in distinct.values()),
            )
            self._wake(held.id)
            if not plan.total or now.tokens_left == 0:
                return
            serial = await self._sample(held, paths, plan, serial, now)

    async def _sample(
        self, held: Growth, paths: Sequence[WorkPath], plan: Plan, serial: int, now: Growth
    ) -> int:
        """Sample a plan and store it as it comes in. Returns the next free serial number."""
        by_policy: dict[str, list[tuple[WorkPath, Wanted]]] = {}
        for p, i, token, count in plan.items:
            path = paths[p]
            forced = path.nodes.tokens[: path.nodes.positions[i]]
            if token is not None:
                forced = (*forced, token)
            for _ in range(count):
                uid = rollout_uid("growth", held.id, held.attempt, serial)
                serial += 1
                want = Wanted(uid, path.nodes.prompt, forced)
                by_policy.setdefault(path.nodes.policy.id, []).append((path, want))
        tokens_left = now.tokens_left
        started, sampled = time.monotonic(), 0
        for items in by_policy.values():
            buffer: list[tuple[WorkPath, Finished, int]] = []
            flushed = time.monotonic()
            samples = self._sampler.sample(items[0][0].nodes.policy, [want for _, want in items])
            try:
                async with aclosing(samples):
                    async for index, finished, tokens in samples:
                        buffer.append((items[index][0], finished, tokens))
                        sampled += 1
                        if tokens_left is not None:
                            tokens_left -= tokens
                            if tokens_left <= 0:
                                break
                        due = time.monotonic() - flushed >= FLUSH_SECONDS
                        if due or len(buffer) >= FLUSH_ROLLOUTS:
                            full, buffer = buffer, []
                            await self._flush(held, full)
                            flushed = time.monotonic()
                            self._rates[held.id] = sampled / (flushed - started)
            finally:
                # Also when cancelled, or when the engine failed: what was sampled was paid for.
                if buffer:
                    await self._flush(held, buffer)
            if tokens_left is not None and tokens_left <= 0:
                break
        return serial

    async def _flush(self, held: Growth, buffer: Sequence[tuple[WorkPath, Finished, int]]) -> None:
        task = asyncio.create_task(asyncio.to_thread(self._store_all, held, buffer))
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            await task
            raise
        self._wake(held.id)

    def _store_all(self, held: Growth, buffer: Sequence[tuple[WorkPath, Finished, int]]) -> None:
        by_tree: dict[int, list[tuple[WorkPath, Finished, int]]] = {}
        for item in buffer:
            by_tree.setdefault(item[0].tree.id, []).append(item)
        for items in by_tree.values():
            self._store_batch(held, items)

    def _store_batch(self, held: Growth, items: Sequence[tuple[WorkPath, Finished, int]]) -> None:
        path = items[0][0]
        tokens = {finished.uid: tokens for _, finished, tokens in items}

        def charge(connection: Connection, result: AddResult, _: object) -> None:
            new = [tokens[uid] for uid in result.inserted]
            self._store.charge(connection, held, len(new), sum(new))

        finished = [f for _, f, _ in items]
        nodes = path.nodes
        try:
            self._recorder.record(
                nodes.policy,
                nodes.question,
                path.tree,
                finished,
                growth_id=held.id,
                then=charge,
            )
        except LeaseLostError:
            # The growth is no longer ours, but its samples are as good as any.
            self._recorder.record(
                nodes.policy, nodes.question, path.tree, finished, growth_id=held.id
            )
            raise


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
            row if (spec.allocation is Allocation.EQUAL and not path.free) == forced else []
            for path, row in zip(paths, state, strict=True)
        ]
        if goal == 0:
            nodes = len({n.key for row in state for n in row if not n.flat})
            left = now.rollouts_left
            each = (
                ROUND_PER_NODE if left is None else min(ROUND_PER_NODE, -(-left // max(1, nodes)))
            )
            part = plan_round(mine, each, forced=forced)
        elif forced:
            part = plan_equal(mine, goal)
        else:
            part = plan_free(mine, goal, reuse=number < REUSE_ROUNDS)
        plan.items.extend(part.items)
    return plan


def _cached(spec: GrowthSpec, nodes: Iterable[PlanNode]) -> int:
    """Rollouts that the nodes have already, as far as the goal wants them, over all nodes."""
    total = 0
    for node in nodes:
        if node.flat:
            continue
        have = max(int(node.candidate_valid.sum()), node.valid)
        total += min(have, spec.rollouts_per_node) if spec.rollouts_per_node else have
    return total
