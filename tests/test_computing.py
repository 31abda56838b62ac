"""Few compute at once; what waits for the database or a grader is not held up by them."""

from __future__ import annotations

import asyncio
import contextvars
import threading

import pytest
from unmask_server.computing import PLANNING, READING, compute, plan

SAID: contextvars.ContextVar[str] = contextvars.ContextVar("SAID", default="")


async def test_few_compute_at_once_and_others_go_on() -> None:
    release, running = threading.Event(), threading.Semaphore(0)
    began: list[int] = []

    def work(i: int) -> int:
        began.append(i)
        running.release()
        release.wait(30)
        return i

    tasks = [asyncio.create_task(compute(work, i)) for i in range(READING + 3)]
    for _ in range(READING):
        assert await asyncio.to_thread(running.acquire, timeout=30)
    # The others wait for their turn, and a thread of the usual kind is free.
    assert await asyncio.to_thread(lambda: len(began)) == READING
    release.set()
    assert await asyncio.gather(*tasks) == list(range(READING + 3))


async def test_who_reads_does_not_wait_for_those_that_plan() -> None:
    release = threading.Event()
    plans = [asyncio.create_task(plan(release.wait, 30)) for _ in range(PLANNING + 3)]
    assert await asyncio.wait_for(compute(lambda: 1), 30) == 1
    release.set()
    assert all(await asyncio.gather(*plans))


async def test_it_sees_what_the_caller_set_and_raises_what_work_raises() -> None:
    SAID.set("here")
    assert await compute(SAID.get) == "here"
    with pytest.raises(ZeroDivisionError):
        await compute(divmod, 1, 0)
