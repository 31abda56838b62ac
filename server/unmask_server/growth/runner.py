"""This server's growths, as tasks of its event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextvars import Context
from dataclasses import dataclass
from typing import TypeVar

import structlog
from structlog.contextvars import bind_contextvars

from unmask_server.database.faults import is_transient, message_of
from unmask_server.diagnosis.allocation import Forecast
from unmask_server.engines.base import EngineError
from unmask_server.growth.adaptive import AdaptivePlanner
from unmask_server.growth.control import Charge, GrowthControl, nothing
from unmask_server.growth.flushing import FLUSH_SECONDS
from unmask_server.growth.planners import Next
from unmask_server.growth.recorder import Recorder
from unmask_server.growth.rounds import Rounds
from unmask_server.growth.sampler import Sampler
from unmask_server.growth.spec import NOBODY, Growth, GrowthSpec, Origin, State
from unmask_server.growth.store import GrowthStore, LeaseLostError, Listing, Subjects
from unmask_server.growth.turns import Turns
from unmask_server.growth.work import WorkReader
from unmask_server.telemetry import metrics, tracing

log = structlog.get_logger(__name__)
Result = TypeVar("Result")

TRIES = 6
"""A growth is given up when it failed so often in a row, storing nothing in between."""
FIRST_PAUSE_SECONDS = 1.0
"""Before the second try; doubled before each further one."""
LOOKS = 5
"""How often growths are looked for that nobody works on, for each time leases are renewed."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What an adaptive growth would cost, and where its nodes are now."""

    forecast: Forecast
    now: Next
    tokens_per_second: float | None


class GrowthRunner:
    """Runs growths and tells how far they are."""

    def __init__(
        self,
        store: GrowthStore,
        work: WorkReader,
        sampler: Sampler,
        recorder: Recorder,
        control: GrowthControl,
        turns: Turns,
        *,
        owner: str,
    ) -> None:
        self._store = store
        self._control = control
        self._turns = turns
        self._work = work
        self._sampler = sampler
        self._recorder = recorder
        self._owner = owner
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._rounds: dict[str, Rounds] = {}
        self._moved: dict[str, asyncio.Event] = {}
        self._taking: set[str] = set()
        self._keeper: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def at_work(self) -> frozenset[str]:
        """Ids of the growths that this server works on."""
        return frozenset(self._tasks)

    def start_keeper(self) -> None:
        """Keep leases alive, and take over growths whose server is gone."""
        self._keeper = asyncio.create_task(self._keep())

    async def start(
        self,
        request_id: str,
        spec: GrowthSpec,
        subjects: Subjects,
        origin: Origin = NOBODY,
        charge: Charge = nothing,
    ) -> Growth:
        """Start a growth, or find the one of that request_id; one that failed is taken up again.

        `charge` counts the latter; who starts one has it admitted before.

        Raises:
            AlreadyExists: the request_id belongs to another spec.

        """
        create = self._store.create
        growth = await asyncio.to_thread(create, request_id, spec, subjects, origin)
        if growth.state is State.FAILED:
            growth = await asyncio.to_thread(self._control.retry, growth.id, charge)
        return await self._go_on(growth)

    async def predict(self, spec: GrowthSpec, limit: int) -> Prediction:
        """What an adaptive growth would cost from here; nothing is sampled."""
        paths = await self._work.prepare(spec)
        planner = await AdaptivePlanner.over(spec, paths, self._work)
        forecast, now = await planner.forecast(float(limit))
        return Prediction(forecast, now, self.tokens_per_second({p.nodes.policy.id for p in paths}))

    def tokens_per_second(self, policies: Iterable[str]) -> float | None:
        """The slowest pace at which this server sampled these; None if one of them it did not."""
        paces = [self._sampler.tokens_per_second(policy) for policy in policies]
        return min((pace for pace in paces if pace), default=None) if all(paces) else None

    async def get(self, growth_id: str) -> Growth:
        """One growth, as committed."""
        return await asyncio.to_thread(self._store.get, growth_id)

    async def page(
        self, size: int, before: tuple[float, str] | None, listing: Listing
    ) -> list[Growth]:
        """See `GrowthStore.page`."""
        return await asyncio.to_thread(self._store.page, size, before, listing)

    def seconds_left(self, growth: Growth) -> float | None:
        """Rough time to a growth's end, from its pace on this server."""
        rounds = self._rounds.get(growth.id)
        if growth.state.ended or rounds is None or not rounds.rate:
            return None
        return max(0, growth.rollouts_planned - growth.rollouts_sampled) / rounds.rate

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
        return await _to_the_end(self._stop(growth_id, self._control.cancel))

    async def pause(self, growth_id: str) -> Growth:
        """Stop a growth until it is resumed. Raises FailedPrecondition if it has ended."""
        return await _to_the_end(self._stop(growth_id, self._control.pause))

    async def resume(self, growth_id: str, charge: Charge = nothing) -> Growth:
        """Go on with one that is paused or failed; see `GrowthControl.resume`."""
        return await self._go_on(await asyncio.to_thread(self._control.resume, growth_id, charge))

    async def extend(
        self,
        growth_id: str,
        change: Callable[[GrowthSpec], GrowthSpec],
        charge: Charge = nothing,
    ) -> Growth:
        """Give a growth more to reach; see `GrowthControl.extend`."""
        extend = self._control.extend
        return await self._go_on(await asyncio.to_thread(extend, growth_id, change, charge))

    async def _go_on(self, growth: Growth) -> Growth:
        if growth.state in (State.QUEUED, State.RUNNING):
            # A client that gives up now must not leave a growth that is held and not worked on.
            await _to_the_end(self._take(growth.id))
        return growth

    async def _stop(self, growth_id: str, move: Callable[[str], Growth]) -> Growth:
        """Change the row, so that nobody takes the growth up again, then end the work here."""
        await asyncio.to_thread(move, growth_id)
        if (task := self._tasks.get(growth_id)) is not None:
            task.cancel()
            # What is under way is stored before the answer says how much there is.
            await asyncio.wait([task])
        self._turns.move()
        return await self.get(growth_id)

    async def close(self) -> None:
        """Stop working; another server, or the next start of this one, goes on at once.

        What was sampled is stored, and the leases are given up. May be called twice.
        """
        self._closed = True
        tasks = [*([self._keeper] if self._keeper else []), *self._tasks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._release()

    async def _release(self) -> None:
        try:
            await asyncio.to_thread(self._store.release, self._owner)
        except Exception as error:
            log.warning("leases are left to run out", error=message_of(error))

    async def _keep(self) -> None:
        period = self._store.lease_seconds / 6.0
        while True:
            try:
                # Looked at more often than renewed: what a server leaves that stops is taken soon.
                for _ in range(LOOKS):
                    for growth_id in await asyncio.to_thread(self._store.claimable, self._owner):
                        await self._take(growth_id)
                    await asyncio.sleep(period / LOOKS)
                await self._renew()
            except Exception:
                log.exception("looking after growths failed; trying again")
                await asyncio.sleep(period)

    async def _renew(self) -> None:
        """Keep the leases, and stop work on what is another's now, or nobody's."""
        at_work = dict(self._tasks)
        mine = await asyncio.to_thread(self._store.renew, self._owner, list(at_work))
        for growth_id, task in at_work.items():
            if growth_id not in mine:
                task.cancel()

    async def _take(self, growth_id: str) -> None:
        """Work on a growth, if nobody does."""
        if self._closed or growth_id in self._tasks or growth_id in self._taking:
            return
        self._taking.add(growth_id)
        try:
            held = await asyncio.to_thread(self._store.claim, growth_id, self._owner)
            if held is None:
                return
            if self._closed:
                await self._release()
                return
            self._moved[growth_id] = asyncio.Event()
            log.info("growth begins", growth=held.id, attempt=held.attempt)
            # It outlives the call that it may have begun in, and is no part of it.
            task = asyncio.create_task(self._run(held), context=Context())
            self._tasks[growth_id] = task
            task.add_done_callback(lambda _: self._forget(growth_id))
        finally:
            self._taking.discard(growth_id)

    def _forget(self, growth_id: str) -> None:
        self._tasks.pop(growth_id, None)
        self._rounds.pop(growth_id, None)
        self._wake(growth_id)
        self._moved.pop(growth_id, None)

    def _wake(self, growth_id: str) -> None:
        if (event := self._moved.get(growth_id)) is not None:
            event.set()
            self._moved[growth_id] = asyncio.Event()

    async def _run(self, held: Growth) -> None:
        bind_contextvars(growth=held.id, request_id=held.call_id)
        try:
            with tracing.root("growth", link=held.call_trace, growth=held.id, attempt=held.attempt):
                state = await self._work_on(held)
            metrics.GROWTHS_ENDED.labels(state.value).inc()
            log.info("growth ended", state=state.value)
        except LeaseLostError:
            log.info("growth left: stopped by a client, or taken over")
        except Exception:
            # Its row says that it is ours; the keeper will find it without a task and take it up.
            log.exception("growth interrupted")

    async def _work_on(self, held: Growth) -> State:
        """Work to the end, and say so in the row."""
        finish = self._store.finish
        rounds = Rounds(
            held,
            self._store,
            self._work,
            self._sampler,
            self._recorder,
            self._turns,
            lambda: self._wake(held.id),
        )
        self._rounds[held.id] = rounds
        failures, stored = 0, 0
        while True:
            try:
                await rounds.run()
                # Not if it was extended meanwhile.
                if await asyncio.to_thread(finish, held, State.SUCCEEDED, "", rounds.revision):
                    return State.SUCCEEDED
                continue
            except LeaseLostError:
                raise
            except Exception as error:
                failures = failures + 1 if rounds.stored == stored else 1
                stored = rounds.stored
                if not _may_pass(error) or failures >= TRIES:
                    log.exception("growth failed")
                    await asyncio.to_thread(finish, held, State.FAILED, message_of(error))
                    return State.FAILED
                pause = FIRST_PAUSE_SECONDS * 2 ** (failures - 1)
                metrics.GROWTH_INTERRUPTIONS.inc()
                log.warning("growth interrupted", error=message_of(error), pause=pause)
                await asyncio.sleep(pause)


def _may_pass(error: Exception) -> bool:
    """Whether the same work may go through later: an engine or a database that is away."""
    return isinstance(error, EngineError | TimeoutError) or is_transient(error)


async def _to_the_end(work: Awaitable[Result]) -> Result:
    """Await something that goes on to its end even if the caller is cancelled."""
    task = asyncio.ensure_future(work)
    # What it raises when nobody waits any more is nobody's to know.
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return await asyncio.shield(task)
