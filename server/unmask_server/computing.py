"""Mathematics beside the event loop, a few at a time."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

READING = 2
"""Threads that compute answers at once. Python runs one of them at a time: more would finish no
sooner, and the event loop, whose turn comes after theirs, would answer everybody later."""
PLANNING = 1
"""Threads that plan growths. They are not the readers' threads: who reads waits for readers only,
however many growths have something to plan."""
PARSING = 4
"""Threads that parse large requests and check them. A MiB of tiny messages takes 27 MiB once it is
parsed: only so many of these are there at once before they are found to be too many."""

_readers = ThreadPoolExecutor(READING, thread_name_prefix="unmask-compute")
_planners = ThreadPoolExecutor(PLANNING, thread_name_prefix="unmask-plan")
_forecasters = ThreadPoolExecutor(1, thread_name_prefix="unmask-forecast")
_parsers = ThreadPoolExecutor(PARSING, thread_name_prefix="unmask-parse")


async def compute(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `asyncio.to_thread` does, for an answer that is computed and waits for nothing."""
    return await _run(_readers, partial(work, *args, **kwargs))


async def plan(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The same for what a growth does next."""
    return await _run(_planners, partial(work, *args, **kwargs))


async def forecast(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The same for what a growth would cost, which takes long: no growth's plan waits for it."""
    return await _run(_forecasters, partial(work, *args, **kwargs))


async def parse(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The same for a request that takes long to be read."""
    return await _run(_parsers, partial(work, *args, **kwargs))


async def _run(threads: ThreadPoolExecutor, work: Callable[[], T]) -> T:
    call = partial(contextvars.copy_context().run, work)
    return await asyncio.get_running_loop().run_in_executor(threads, call)
