"""SGLang killed in the middle of what it was asked.

Its place is taken by the stand-in of the tests of the engine, in a process of its own: a real one
takes minutes to start; what it does is tested on a real one by `make test-sglang`.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import aiohttp
import pytest

from tests.chaos.audit import audit
from tests.chaos.conftest import MakeTeam
from tests.chaos.report import Row, count
from tests.chaos.server import processes
from tests.chaos.team import has_more_than
from tests.sglang.stand_in import StandIn
from tests.tiny import WORDS

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3600)]

KILLS = count("SGLANG_KILLS", 2)


def _serve(port: int) -> None:
    async def forever() -> None:
        async with StandIn(columns=len(WORDS)).running(port):
            await asyncio.Event().wait()

    asyncio.run(forever())


async def _start(port: int) -> Any:
    process = processes.Process(target=_serve, args=(port,), daemon=True)
    process.start()
    async with aiohttp.ClientSession() as session, asyncio.timeout(60):
        while True:
            try:
                async with session.get(f"http://127.0.0.1:{port}/health"):
                    return process
            except aiohttp.ClientError:
                await asyncio.sleep(0.01)


async def test_sglang_is_killed_during_growth(
    store: str, make_team: MakeTeam, rows: list[Row]
) -> None:
    """What it had not answered is asked again; nothing that it answered is lost."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    engine = await _start(port)
    team = make_team(store, settings={"sglang_patience_seconds": 60})
    budget = 250 * KILLS
    async with team.running() as server:
        await team.fill(server, endpoints=[f"http://127.0.0.1:{port}"])
        for _ in range(KILLS):
            growth = await team.grow(server, "killed", budget)
            await team.watch(server, growth.id, has_more_than(growth.rollouts_sampled))
            engine.kill()
            engine.join()
            engine = await _start(port)
        await team.finish(server, "killed", budget)
        assert server.is_alive
    engine.kill()
    account = audit(team)
    rows.append(Row.of("SGLang killed (stand-in)", store, KILLS, account))
    assert account.violations == []
    assert account.uncharged == 0
