"""Storing what is sampled while it is sampled, in batches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

FLUSH_ROLLOUTS = 256
"""Finished rollouts are committed when there are so many, ..."""
FLUSH_SECONDS = 0.5
"""... or when the oldest has waited so long: what a killed server loses at most."""

Made = TypeVar("Made")


async def flushed(
    samples: AsyncGenerator[Made, None], flush: Callable[[list[Made]], Coroutine[Any, Any, None]]
) -> None:
    """Flush all that `samples` yields, which is closed at the end.

    What was sampled was paid for: it is flushed also when this is cancelled, or the engine fails.
    """
    buffer: list[Made] = []

    async def flush_all() -> None:
        if buffer:
            full = buffer.copy()
            buffer.clear()
            await _to_its_end(flush(full))

    async def collect() -> None:
        async with aclosing(samples):
            async for one in samples:
                buffer.append(one)
                if len(buffer) >= FLUSH_ROLLOUTS:
                    await flush_all()

    async def flush_now_and_then() -> None:
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            await flush_all()

    both = {asyncio.create_task(collect()), asyncio.create_task(flush_now_and_then())}
    try:
        done, _ = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in both:
            task.cancel()
        ends = await asyncio.gather(*both, return_exceptions=True)
        await flush_all()
    # A batch may have been under way when the last one was sampled.
    for end in ends:
        if isinstance(end, Exception):
            raise end


async def _to_its_end(work: Coroutine[Any, Any, None]) -> None:
    """Work that is waited for even if this is cancelled."""
    task = asyncio.create_task(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await task
        raise
