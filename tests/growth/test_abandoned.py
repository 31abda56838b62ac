"""Calls that are cancelled while they stop a growth say nothing to the log."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest
from unmask_server.growth.runner import _to_the_end


async def test_what_fails_when_nobody_waits_is_not_logged() -> None:
    loop, said = asyncio.get_running_loop(), list[Any]()
    go_on = asyncio.Event()

    async def refuse() -> None:
        await go_on.wait()
        raise ValueError("it has ended")

    before = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: said.append(context))
    try:
        waiting = asyncio.create_task(_to_the_end(refuse()))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        go_on.set()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        gc.collect()
        assert said == []
        with pytest.raises(ValueError, match="ended"):
            await _to_the_end(refuse())
    finally:
        loop.set_exception_handler(before)
