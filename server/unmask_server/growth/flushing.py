"""Storing what is sampled while it is sampled, in batches."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import structlog

from unmask_server.database.faults import MESSAGES, fault_of
from unmask_server.growth.rows import LeaseLostError

log = structlog.get_logger(__name__)

FLUSH_ROLLOUTS = 256
"""Finished rollouts are committed when there are so many, ..."""
FLUSH_SECONDS = 0.5
"""... or when the oldest has waited so long: what a killed server loses at most."""

Made = TypeVar("Made")
Result = TypeVar("Result")
Put = Callable[[Made], Awaitable[None]]
"""Is told of one that was sampled."""


async def flushed(
    sample: Callable[[Put[Made]], Coroutine[Any, Any, None]],
    flush: Callable[[list[Made]], Coroutine[Any, Any, None]],
) -> None:
    """Sample, and flush all that `sample` puts.

    What was sampled was paid for: it is flushed also when this is cancelled, or the engine fails.
    """
    buffer: list[Made] = []

    async def flush_all() -> None:
        if buffer:
            full = buffer.copy()
            buffer.clear()
            await to_its_end(_told(flush, full))

    async def put(one: Made) -> None:
        buffer.append(one)
        if len(buffer) >= FLUSH_ROLLOUTS:
            await flush_all()

    async def flush_now_and_then() -> None:
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            await flush_all()

    async def put_away() -> list[BaseException | None]:
        ends = await asyncio.gather(*both, return_exceptions=True)
        await flush_all()
        return ends

    both = {asyncio.create_task(sample(put)), asyncio.create_task(flush_now_and_then())}
    try:
        done, _ = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in both:
            task.cancel()
        ends = await to_its_end(put_away())
    # A batch may have been under way when the last one was sampled.
    for end in ends:
        if isinstance(end, Exception):
            raise end


async def _told(
    flush: Callable[[list[Made]], Coroutine[Any, Any, None]], batch: list[Made]
) -> None:
    """Flush a batch; the log tells if that fails: whoever waited for it may be cancelled."""
    try:
        await flush(batch)
    except LeaseLostError:
        # The batch is stored all the same.
        raise
    except Exception as error:
        fault = fault_of(error)
        # What others say may hold a request's words; tracebacks are logged without them.
        why = {"exc_info": error} if fault is None else {"error": MESSAGES[fault]}
        log.warning("storing what was sampled failed", rollouts=len(batch), **why)
        raise


async def to_its_end(work: Coroutine[Any, Any, Result]) -> Result:
    """Wait for work however often this is cancelled meanwhile; then it is cancelled.

    Raises:
        Exception: what the work failed with, also if this is cancelled.

    """
    task = asyncio.create_task(work)
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            cancelled = True
    result = task.result()
    if cancelled:
        raise asyncio.CancelledError
    return result
