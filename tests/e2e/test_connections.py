"""What a connection may do, seen frame by frame (HTTP/2, RFC 9113)."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from unmask.v1 import catalog_pb2

from tests.e2e.conftest import World, serving

SETTINGS, PING, GOAWAY = 4, 6, 7
ACK = 1
MAX_CONCURRENT_STREAMS = 3
ENHANCE_YOUR_CALM = 11


class Connection:
    """Frames to and from a server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    def send(self, kind: int, payload: bytes = b"", flags: int = 0, times: int = 1) -> None:
        """Send a frame, or several in one piece: the server may close after any of them."""
        head = struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + bytes(4)
        self._writer.write((head + payload) * times)

    async def frame(self) -> tuple[int, bytes]:
        """The kind and the content of the next one."""
        head = await self._reader.readexactly(9)
        return head[3], await self._reader.readexactly(int.from_bytes(head[:3], "big"))

    async def frame_of(self, kind: int) -> bytes:
        """The next one of a kind; pings are answered meanwhile."""
        while True:
            found, payload = await self.frame()
            if found == kind:
                return payload
            if found == PING:
                self.send(PING, payload, ACK)


@asynccontextmanager
async def connected(world: World) -> AsyncIterator[Connection]:
    reader, writer = await asyncio.open_unix_connection(world.address.removeprefix("unix:"))
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    connection = Connection(reader, writer)
    connection.send(SETTINGS)
    try:
        yield connection
    finally:
        writer.close()


async def test_so_many_calls_run_on_a_connection(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'unmask.db'}"
    async with serving(url, tmp_path, max_concurrent_streams=17) as world:
        async with connected(world) as connection:
            settings = await connection.frame_of(SETTINGS)
        told = dict(struct.iter_unpack(">HI", settings))
        assert told[MAX_CONCURRENT_STREAMS] == 17


async def test_so_many_calls_run_at_all(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'unmask.db'}"
    async with serving(url, tmp_path, max_concurrent_calls=1) as world:
        path, check = "/grpc.health.v1.Health/", {"timeout": 60.0}
        watch: Any = world.stubs.channel.unary_stream(f"{path}Watch")(b"", **check)
        await watch.read()
        # Larger than the server takes: it is not read.
        message = bytes(world.settings.max_message_mib * 2**20 + 1)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await world.stubs.channel.unary_unary(f"{path}Check")(message, **check)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "Concurrent RPC limit" in str(caught.value.details())
        watch.cancel()


async def test_whoever_pings_too_often_is_disconnected(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'unmask.db'}"
    async with serving(url, tmp_path, keepalive_min_ping_seconds=1000.0) as world:
        async with connected(world) as connection:
            connection.send(PING, bytes(8), times=10)
            payload = await connection.frame_of(GOAWAY)
        assert int.from_bytes(payload[4:8], "big") == ENHANCE_YOUR_CALM
        assert b"too_many_pings" in payload


async def test_whoever_pings_now_and_then_is_not(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'unmask.db'}"
    limits = {"keepalive_min_ping_seconds": 0.0}
    async with serving(url, tmp_path, **limits) as world, connected(world) as connection:
        for number in range(10):
            connection.send(PING, struct.pack(">Q", number))
            assert await connection.frame_of(PING) == struct.pack(">Q", number)


async def test_a_silent_connection_is_pinged_and_an_old_one_is_asked_to_go(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'unmask.db'}"
    limits = {"keepalive_seconds": 1.0, "max_connection_age_seconds": 2.5}
    async with serving(url, tmp_path, **limits) as world, connected(world) as connection:
        await connection.frame_of(PING)
        await connection.frame_of(GOAWAY)


async def test_an_idle_connection_is_closed(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'unmask.db'}"
    limits = {"max_connection_idle_seconds": 0.5}
    async with serving(url, tmp_path, **limits) as world, connected(world) as connection:
        await connection.frame_of(GOAWAY)


async def test_a_message_has_a_size(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'unmask.db'}"
    async with serving(url, tmp_path, max_message_mib=1) as world:
        request = catalog_pb2.RegisterQuestionsRequest(jsonl=b" " * (2**20 + 1))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await world.stubs.catalog.RegisterQuestions(request)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
