"""Very many things to sample, a slice at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

SLICE_ROLLOUTS = 2048
"""An engine is given so many at once: enough for it, and earlier ones are done before later ones.
Between slices of a growth its turn may end."""


async def overlapping(
    count: int, work: Callable[[range, Callable[[], None]], Coroutine[Any, Any, None]]
) -> None:
    """Work through `count` things, slice by slice; the next is begun when half of one is done.

    Args:
        count: how many there are.
        work: does those of a slice, and calls what it is given for each that is done.

    """
    left = 0
    half = asyncio.Event()

    def one_done() -> None:
        nonlocal left
        left -= 1
        if left <= SLICE_ROLLOUTS // 2:
            half.set()

    running: set[asyncio.Task[Any]] = set()
    try:
        for start in range(0, count, SLICE_ROLLOUTS):
            part = range(start, min(start + SLICE_ROLLOUTS, count))
            left += len(part)
            half.clear()
            running.add(asyncio.create_task(work(part, one_done)))
            if part.stop < count:
                await _any(running, half)
        while running:
            await _any(running)
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _any(running: set[asyncio.Task[Any]], event: asyncio.Event | None = None) -> None:
    """Wait for the event, or until one is done if there is none; who is done is taken out.

    If nothing runs any more, nothing is waited for: a slice may end without all of its things.
    Raises what one raised.
    """
    waiting = [asyncio.create_task(event.wait())] if event is not None else []
    try:
        while running and (event is None or not event.is_set()):
            done, _ = await asyncio.wait({*running, *waiting}, return_when=asyncio.FIRST_COMPLETED)
            for task in done & running:
                running.discard(task)
                task.result()
            if event is None:
                return
    finally:
        for task in waiting:
            task.cancel()
