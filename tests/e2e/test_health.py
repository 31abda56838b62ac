"""What the health service says while parts of a server are away, and what else operators ask."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import grpc
import pytest
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from sqlalchemy import insert, text
from unmask_server.api import health as health_module
from unmask_server.database.connect import open_database, write
from unmask_server.database.schema import model
from unmask_server.serve import SERVICES

from tests.chaos.crash import _start as start_postgresql
from tests.chaos.server import processes
from tests.e2e.conftest import World, fill, serving
from tests.sglang.stand_in import StandIn
from tests.stores import new_database, postgresql_process

SERVING, NOT_SERVING = (
    health_pb2.HealthCheckResponse.SERVING,
    health_pb2.HealthCheckResponse.NOT_SERVING,
)
READING = ["", *(name for name in SERVICES if name != "unmask.v1.GrowthService")]
ALL = ["", *SERVICES]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health_module, "LOOK_SECONDS", 0.02)


@pytest.fixture
async def plain(tmp_path: Path) -> AsyncIterator[World]:
    """A server without any models."""
    async with serving(f"sqlite:///{tmp_path / 'unmask.db'}", tmp_path) as world:
        yield world


def stub(world: World) -> health_pb2_grpc.HealthStub:
    return health_pb2_grpc.HealthStub(world.stubs.channel)


async def statuses(world: World, *names: str) -> set[int]:
    requests = [health_pb2.HealthCheckRequest(service=name) for name in names]
    return {(await stub(world).Check(request)).status for request in requests}


async def becomes(world: World, service: str, status: int) -> None:
    """Wait for it, by watching."""
    watch = stub(world).Watch(health_pb2.HealthCheckRequest(service=service))
    async for response in watch:
        if response.status == status:
            break
    watch.cancel()


async def test_a_server_is_ready_as_soon_as_it_answers(plain: World) -> None:
    assert await statuses(plain, *ALL, "store", "engine", "live") == {SERVING}
    with pytest.raises(grpc.aio.AioRpcError) as unknown:
        await statuses(plain, "unmask.v1.NoService")
    assert unknown.value.code() is grpc.StatusCode.NOT_FOUND


async def test_without_its_file_nothing_is_served_until_it_is_back(
    plain: World, tmp_path: Path
) -> None:
    file = tmp_path / "unmask.db"
    file.rename(tmp_path / "elsewhere")
    await becomes(plain, "", NOT_SERVING)
    assert await statuses(plain, *ALL, "store") == {NOT_SERVING}
    assert await statuses(plain, "engine", "live") == {SERVING}
    # Looking does not make an empty one.
    assert not file.exists()
    (tmp_path / "elsewhere").rename(file)
    await becomes(plain, "", SERVING)
    assert await statuses(plain, *ALL) == {SERVING}


async def test_another_file_in_its_place_is_not_the_store(plain: World, tmp_path: Path) -> None:
    file = tmp_path / "unmask.db"
    (tmp_path / "copy").write_bytes(file.read_bytes())
    (tmp_path / "copy").rename(file)
    await becomes(plain, "store", NOT_SERVING)


async def test_a_store_at_another_revision_is_not_served(plain: World) -> None:
    database = open_database(plain.settings.database)
    with write(database) as connection:
        old = connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one()
        connection.execute(text("UPDATE alembic_version SET version_num = 'newer'"))
    await becomes(plain, "unmask.v1.CatalogService", NOT_SERVING)
    with write(database) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :old"), {"old": old})
    await becomes(plain, "unmask.v1.CatalogService", SERVING)
    database.dispose()


async def test_postgresql_stops_and_comes_back(tmp_path: Path) -> None:
    with postgresql_process() as process:
        url = new_database(process.get_uri())
        patience = {"database_patience_seconds": 0.5, "database_connection_seconds": 2.0}
        async with serving(url, tmp_path, **patience) as world:
            assert await statuses(world, *ALL) == {SERVING}
            await asyncio.to_thread(process.stop)
            await becomes(world, "", NOT_SERVING)
            assert await statuses(world, *ALL, "store") == {NOT_SERVING}
            assert await statuses(world, "live") == {SERVING}
            # In a process of its own: gRPC does not survive that this one forks.
            starting = processes.Process(target=start_postgresql, args=(process.pgdata,))
            starting.start()
            await asyncio.to_thread(starting.join)
            process.ensure_postgres_running()
            await becomes(world, "", SERVING)
            assert await statuses(world, *ALL) == {SERVING}


def served_model(world: World, *urls: str) -> None:
    """Register a model that these run, as if they had been looked at."""
    row = {
        "fingerprint": "m", "source": "/models/stand-in", "architecture": "none", "vocab_size": 8,
        "max_context": 100, "tokenizer_fingerprint": "t", "eos_ids": [0], "created_at": 0.0,
        "endpoints": list(urls),
    }  # fmt: skip
    with write(world.app.database) as connection:
        connection.execute(insert(model), row)


async def test_while_sglang_is_away_only_growing_stops(plain: World) -> None:
    async with StandIn().running() as first:
        served_model(plain, first.url, "http://127.0.0.1:9")
        # One of two is enough.
        assert await statuses(plain, *ALL, "engine") == {SERVING}
    await becomes(plain, "engine", NOT_SERVING)
    await becomes(plain, "unmask.v1.GrowthService", NOT_SERVING)
    assert await statuses(plain, *READING, "store", "live") == {SERVING}
    async with StandIn().running(int(first.url.rpartition(":")[2])):
        await becomes(plain, "unmask.v1.GrowthService", SERVING)
        assert await statuses(plain, *ALL, "engine") == {SERVING}


async def test_one_missed_look_is_forgiven(plain: World) -> None:
    async with StandIn().running() as sglang:
        served_model(plain, sglang.url)
        await becomes(plain, "engine", SERVING)
    store, models = Looks([""] * 9), Looks(["", "away", "", "away", "away", ""])
    health = health_module.Health(SERVICES, store, models)
    await health.start()
    seen = [bool(health.problems["engine"])]
    health._task.cancel()  # type: ignore[union-attr]
    for _ in range(5):
        await health.look()
        seen.append(bool(health.problems["engine"]))
    assert seen == [False, False, False, False, True, False]
    await health.stop()


async def test_the_store_is_told_while_the_models_cannot_be_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    models = Hangs()
    health = health_module.Health(SERVICES, Looks(["", "away"]), models)
    request = health_pb2.HealthCheckRequest(service="")
    for status in (SERVING, NOT_SERVING):
        looking = asyncio.create_task(health.look())
        await models.asked.acquire()
        assert (await health.servicer.Check(request, Mock())).status == status
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
    # Nor does it go on for ever: then the engines are what they were.
    monkeypatch.setattr(health_module, "ENGINES_SECONDS", 0.0)
    health = health_module.Health(SERVICES, Looks(["away"]), Hangs())
    await health.look()
    assert health.problems == {"store": "away", "engine": ""}


class Hangs:
    """Models that are never done being looked at."""

    def __init__(self) -> None:
        self.asked = asyncio.Semaphore(0)

    async def problem(self, **_: Any) -> str:
        self.asked.release()
        await asyncio.Event().wait()
        return ""


class Looks:
    """Problems, one after the other."""

    def __init__(self, problems: list[str]) -> None:
        self._problems = problems

    async def problem(self, **_: Any) -> str:
        return self._problems.pop(0)


async def test_an_embedded_model_whose_directory_is_gone_cannot_be_run(
    tmp_path: Path, models: Path
) -> None:
    mine = tmp_path / "models"
    async with serving(f"sqlite:///{tmp_path / 'unmask.db'}", tmp_path) as world:
        shutil.copytree(models, mine)
        await fill(world, mine)
        assert await statuses(world, *ALL) == {SERVING}
        mine.rename(tmp_path / "elsewhere")
        await becomes(world, "unmask.v1.GrowthService", NOT_SERVING)
        assert await statuses(world, *READING) == {SERVING}
        (tmp_path / "elsewhere").rename(mine)
        await becomes(world, "unmask.v1.GrowthService", SERVING)


async def test_whoever_watches_is_told_before_the_server_goes(tmp_path: Path) -> None:
    seen = []
    async with serving(f"sqlite:///{tmp_path / 'unmask.db'}", tmp_path) as world:
        channel = grpc.aio.insecure_channel(world.address)
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        seen.append((await watch.read()).status)
    while (answer := await watch.read()) is not grpc.aio.EOF:
        seen.append(answer.status)
    assert seen == [SERVING, NOT_SERVING]
    await channel.close()


@pytest.mark.parametrize("version", ["v1alpha", "v1"])
async def test_reflection_speaks_both_versions(plain: World, version: str) -> None:
    name = f"grpc.reflection.{version}.ServerReflection"
    ask = plain.stubs.channel.stream_stream(
        f"/{name}/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    call = ask()
    await call.write(reflection_pb2.ServerReflectionRequest(list_services="*"))
    listed = [s.name for s in (await call.read()).list_services_response.service]
    assert {*SERVICES, "grpc.health.v1.Health", name} <= set(listed)
    for described in listed:
        await call.write(reflection_pb2.ServerReflectionRequest(file_containing_symbol=described))
        assert (await call.read()).file_descriptor_response.file_descriptor_proto, described
    await call.done_writing()


async def test_who_is_connected_is_told_to_operators_only(tmp_path: Path) -> None:
    url, admin = f"sqlite:///{tmp_path / 'unmask.db'}", f"unix:{tmp_path / 'admin'}"
    request = channelz_pb2.GetServersRequest()
    async with serving(url, tmp_path, admin_listen=[admin]) as world:
        assert await statuses(world, "") == {SERVING}
        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await channelz_pb2_grpc.ChannelzStub(world.stubs.channel).GetServers(request)
        assert unknown.value.code() is grpc.StatusCode.UNIMPLEMENTED
        async with grpc.aio.insecure_channel(admin) as channel:
            found = await channelz_pb2_grpc.ChannelzStub(channel).GetServers(request)
            assert max(server.data.calls_started for server in found.server) >= 1
            health = health_pb2_grpc.HealthStub(channel)
            assert (await health.Check(health_pb2.HealthCheckRequest())).status == SERVING
