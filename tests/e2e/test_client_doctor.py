"""`unmask doctor`: a server as it looks from a client."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import grpc
import pytest
import unmask
from typer.testing import CliRunner
from unmask.cli.main import app
from unmask_server.api import health as health_module

from tests.e2e.conftest import serving


async def doctor(address: str, *, code: int | None) -> dict[str, dict[str, str]]:
    """What it finds, by subject."""
    arguments = ["doctor", "--json", "--server", address]
    result = await asyncio.to_thread(CliRunner().invoke, app, arguments)
    assert code is None or result.exit_code == code, result.output
    # The server is in this process, and logs to the same place.
    at = result.stdout.index("[\n  {")
    listed, _ = json.JSONDecoder().raw_decode(result.stdout, at)
    found = {one["subject"]: one for one in listed}
    assert all(bool(one["todo"]) is (one["level"] != "ok") for one in found.values())
    return found


async def test_a_server_that_can_be_used(tmp_path: Path) -> None:
    async with serving(f"sqlite:///{tmp_path / 'unmask.db'}", tmp_path) as world:
        found = await doctor(world.address, code=0)
    assert {"version", "store", "engine", "latency", "access"} == set(found)
    assert {one["level"] for one in found.values()} <= {"ok", "warning"}
    version = unmask.__version__
    assert found["version"]["found"] == f"{version} here, {version} at the server"


async def test_a_server_whose_store_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health_module, "LOOK_SECONDS", 0.02)
    file = tmp_path / "unmask.db"
    async with serving(f"sqlite:///{file}", tmp_path) as world:
        file.rename(tmp_path / "elsewhere")
        while (await doctor(world.address, code=None))["store"]["level"] == "ok":
            pass
        assert "unmask-server doctor" in (await doctor(world.address, code=1))["store"]["todo"]


async def test_nobody_there(tmp_path: Path) -> None:
    found = await doctor(f"unix:{tmp_path}/nobody", code=1)
    assert set(found) == {"server"}
    assert "is it running" in found["server"]["todo"]


async def test_somebody_else_there(tmp_path: Path) -> None:
    server = grpc.aio.server()
    server.add_insecure_port(f"unix:{tmp_path}/other")
    await server.start()
    found = await doctor(f"unix:{tmp_path}/other", code=1)
    assert "another service" in found["server"]["todo"]
    await server.stop(None)


async def test_a_token_is_wanted(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'unmask.db'}"
    async with serving(url, tmp_path, auth=["tokens"]) as world:
        found = await doctor(world.address, code=1)
    assert found["store"]["level"] == "ok"
    assert "UNMASK_TOKEN" in found["access"]["todo"]
