"""What is sampled is stored in batches, whatever ends the sampling."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError
from structlog.testing import capture_logs
from unmask_server.growth import flushing
from unmask_server.growth.flushing import FLUSH_ROLLOUTS, Put, flushed
from unmask_server.growth.rows import LeaseLostError

Sample = Callable[[Put[int]], Coroutine[Any, Any, None]]


class Store:
    """Keeps what it is given, once it may."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.stored: list[int] = []
        self.asked, self.may = asyncio.Event(), asyncio.Event()
        self.error: Exception | None = None

    async def flush(self, batch: list[int]) -> None:
        self.batches.append(batch)
        self.asked.set()
        await self.may.wait()
        if self.error is not None:
            raise self.error
        self.stored += batch


def numbers(count: int, then: asyncio.Event | None = None) -> Sample:
    async def sample(put: Put[int]) -> None:
        for i in range(count):
            await put(i)
        if then is not None:
            await then.wait()

    return sample


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever there is is flushed as soon as nothing else is done."""
    monkeypatch.setattr(flushing, "FLUSH_SECONDS", 0.0)


async def test_many_come_in_batches() -> None:
    store = Store()
    store.may.set()
    await flushed(numbers(2 * FLUSH_ROLLOUTS + 3), store.flush)
    assert [len(batch) for batch in store.batches] == [FLUSH_ROLLOUTS, FLUSH_ROLLOUTS, 3]
    assert store.stored == list(range(2 * FLUSH_ROLLOUTS + 3))


@pytest.mark.usefixtures("at_once")
async def test_few_do_not_wait_for_more() -> None:
    store, never = Store(), asyncio.Event()
    work = asyncio.create_task(flushed(numbers(3, never), store.flush))
    await store.asked.wait()
    assert store.batches == [[0, 1, 2]]
    store.may.set()
    never.set()
    await work


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("error", [None, OSError("the disk is full")])
async def test_a_batch_under_way_at_the_end_is_waited_for(error: Exception | None) -> None:
    store, end = Store(), asyncio.Event()
    store.error = error
    work = asyncio.create_task(flushed(numbers(3, end), store.flush))
    await store.asked.wait()
    end.set()
    # The last one was sampled; its batch is not stored.
    done, _ = await asyncio.wait([work], timeout=0.05)
    assert not done
    store.may.set()
    if error is None:
        await work
        assert store.stored == [0, 1, 2]
    else:
        with pytest.raises(OSError, match="the disk is full"):
            await work


async def test_what_was_sampled_before_a_failure_or_the_end_of_a_call_is_stored() -> None:
    async def failing(put: Put[int]) -> None:
        await put(0)
        raise RuntimeError("the engine failed")

    store = Store()
    store.may.set()
    with pytest.raises(RuntimeError, match="the engine failed"):
        await flushed(failing, store.flush)
    reached = asyncio.Event()

    async def endless(put: Put[int]) -> None:
        await put(1)
        reached.set()
        await asyncio.Event().wait()

    work = asyncio.create_task(flushed(endless, store.flush))
    await reached.wait()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert store.stored == [0, 1]


@pytest.mark.parametrize("times", [1, 2, 3])
async def test_what_was_sampled_is_stored_however_often_a_call_is_cancelled(times: int) -> None:
    store, sampled = Store(), asyncio.Event()

    async def sample(put: Put[int]) -> None:
        batch = asyncio.create_task(numbers(FLUSH_ROLLOUTS)(put))
        # While one batch is being stored, there are some more.
        await store.asked.wait()
        for i in range(3):
            await put(FLUSH_ROLLOUTS + i)
        sampled.set()
        await batch

    work = asyncio.create_task(flushed(sample, store.flush))
    await sampled.wait()
    for _ in range(times):
        work.cancel()
        for _ in range(20):
            await asyncio.sleep(0)
    assert not work.done()
    store.may.set()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert store.stored == list(range(FLUSH_ROLLOUTS + 3))


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("kind", ["unforeseen", "of the database", "only late"])
async def test_the_log_tells_of_a_batch_that_is_not_stored_though_nobody_waits(kind: str) -> None:
    errors = {
        "unforeseen": ZeroDivisionError("3 of them"),
        "of the database": OperationalError("INSERT", {}, ConnectionError()),
        # The growth is not held any more; its batch is stored.
        "only late": LeaseLostError(),
    }
    store, never = Store(), asyncio.Event()
    store.error = errors[kind]
    with capture_logs() as said:
        work = asyncio.create_task(flushed(numbers(3, never), store.flush))
        await store.asked.wait()
        work.cancel()
        store.may.set()
        with pytest.raises(asyncio.CancelledError):
            await work
    why: dict[str, dict[str, object]] = {
        "unforeseen": {"exc_info": store.error},
        "of the database": {"error": "the database cannot be reached now"},
    }
    event = {"event": "storing what was sampled failed", "log_level": "warning", "rollouts": 3}
    assert said == ([event | why[kind]] if kind in why else [])
