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

COMPUTING = 2
"""Threads that compute at once. Python runs one of them at a time: more would finish no sooner, and
the event loop, whose turn comes after theirs, would answer everybody later."""

_threads = ThreadPoolExecutor(COMPUTING, thread_name_prefix="unmask-compute")


async def compute(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `asyncio.to_thread` does, for work that computes and waits for nothing."""
    context = contextvars.copy_context()
    call = partial(context.run, work, *args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(_threads, call)
