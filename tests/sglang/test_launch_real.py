"""Managed mode with a real SGLang."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from structlog.testing import capture_logs
from unmask_server.engines.sglang.launch import Launch, LaunchError, ManagedSglang, Patience

from tests.sglang.real import processes, real
from tests.sglang.test_launch import gone, restarted

pytestmark = pytest.mark.sglang


async def generate(server: ManagedSglang) -> list[int]:
    sampling = {"max_new_tokens": 4, "temperature": 1.0, "ignore_eos": True}
    body: dict[str, Any] = {"input_ids": [5, 6, 7], "sampling_params": sampling}
    async with (
        aiohttp.ClientSession() as session,
        session.post(server.url + "/generate", json=body) as answer,
    ):
        tokens = (await answer.json())["output_ids"]
    assert isinstance(tokens, list)
    return tokens


async def test_servers_run_side_by_side(servers: dict[str, ManagedSglang]) -> None:
    assert servers["plain"].url != servers["padded"].url
    for server in servers.values():
        assert len(await generate(server)) == 4


async def test_one_whose_scheduler_is_killed_comes_back(servers: dict[str, ManagedSglang]) -> None:
    server = servers["plain"]
    restarts, before = server.restarts, processes(server)
    (scheduler,) = [process for process in before if "scheduler" in process.name()]
    with capture_logs() as logs:
        os.kill(scheduler.pid, signal.SIGKILL)
        await restarted(server, restarts + 1)
    assert await gone(before)
    assert len(await generate(server)) == 4
    events = [entry["event"] for entry in logs]
    assert "SGLang died" in events
    assert any("The server is fired up" in event for event in events)


async def test_a_model_that_is_none_is_told_in_its_own_words(tmp_path: Path) -> None:
    launch = real(tmp_path)
    once = Launch(
        launch.model, launch.command, launch.arguments, patience=Patience(failed_starts=1)
    )
    async with ManagedSglang(once) as server:
        with pytest.raises(LaunchError, match=r"config\.json"):
            await server.ready()
