"""Slices come one after the other, and the engine is never without work."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from unmask_server.growth import slices
from unmask_server.growth.slices import overlapping


class Worker:
    """Does things when it is told to."""

    def __init__(self) -> None:
        self.begun: list[range] = []
        self.closed: list[range] = []
        self.error: Exception | None = None
        self._may = asyncio.Semaphore(0)

    def allow(self, more: int) -> None:
        for _ in range(more):
            self._may.release()

    async def work(self, part: range, one_done: Callable[[], None]) -> None:
        self.begun.append(part)
        try:
            for _ in part:
                await self._may.acquire()
                if self.error is not None:
                    raise self.error
                one_done()
        finally:
            self.closed.append(part)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "SLICE_ROLLOUTS", 4)


async def settled() -> None:
    """Everybody has done what they can."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_the_next_slice_is_begun_when_half_of_one_is_done() -> None:
    worker = Worker()
    work = asyncio.create_task(overlapping(10, worker.work))
    await settled()
    assert worker.begun == [range(4)]
    worker.allow(1)
    await settled()
    assert worker.begun == [range(4)]
    worker.allow(1)
    await settled()
    assert worker.begun == [range(4), range(4, 8)]
    worker.allow(8)
    await work
    assert worker.begun == [range(4), range(4, 8), range(8, 10)]
    assert sorted(worker.closed, key=lambda part: part.start) == worker.begun


async def test_a_slice_that_ends_early_holds_up_no_other() -> None:
    begun: list[range] = []

    async def work(part: range, one_done: Callable[[], None]) -> None:
        begun.append(part)
        one_done()

    async with asyncio.timeout(30):
        await overlapping(10, work)
    assert begun == [range(4), range(4, 8), range(8, 10)]


async def test_a_failure_ends_all() -> None:
    worker = Worker()
    work = asyncio.create_task(overlapping(10, worker.work))
    worker.allow(2)
    await settled()
    assert len(worker.begun) == 2
    worker.error = RuntimeError("the engine failed")
    worker.allow(1)
    with pytest.raises(RuntimeError, match="the engine failed"):
        await work
    assert len(worker.closed) == 2


async def test_who_is_cancelled_leaves_nothing_running() -> None:
    worker = Worker()
    work = asyncio.create_task(overlapping(10, worker.work))
    worker.allow(2)
    await settled()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert len(worker.closed) == len(worker.begun) == 2


async def test_nothing_is_nothing() -> None:
    worker = Worker()
    await overlapping(0, worker.work)
    assert worker.begun == []
