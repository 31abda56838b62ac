"""Requests a second for a cached alignment, over an empty `grpc.aio` call that answers as much.

Four teachers under one algorithm; 16 requests in flight from another process, as bytes on both
sides, so that the servers are what is compared. Then the same one request at a time.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc

from bench.figures import figure, show
from bench.served import prepare, server
from tests.stores import new_database, postgresql_server

METHOD = "/unmask.v1.DiagnosisService/GetAlignment"
ROUNDS, CALLS, IN_FLIGHT = 7, 2000, 16
GOAL = 0.6


@contextmanager
def empty(folder: str, size: int) -> Iterator[str]:
    """The ceiling's address."""
    address = f"unix:{folder}/e"
    process = subprocess.Popen([sys.executable, "-m", "bench.empty_server", address, str(size)])
    try:
        with grpc.insecure_channel(address) as channel:
            grpc.channel_ready_future(channel).result(timeout=30)
        yield address
    finally:
        process.kill()
        process.wait()


async def rate(address: str, method: str, request: bytes, *, calls: int, in_flight: int) -> float:
    """Calls a second."""
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.unary_unary(method)
        await call(request)
        left = iter(range(calls))

        async def worker() -> None:
            for _ in left:
                await call(request)

        begun = time.perf_counter()
        await asyncio.gather(*(worker() for _ in range(in_flight)))
        return calls / (time.perf_counter() - begun)


def measure(name: str, database: str) -> None:
    """Two figures on one store."""
    with (
        tempfile.TemporaryDirectory() as folder,
        server(database) as (address, _),
    ):
        request = prepare(address, Path(folder)).SerializeToString()
        with grpc.insecure_channel(address) as channel:
            size = len(channel.unary_unary(METHOD)(request))
        with empty(folder, size) as ceiling:
            for suffix, in_flight in (("", IN_FLIGHT), ("_one_at_a_time", 1)):
                ours, theirs = [], []
                for _ in range(ROUNDS):
                    how = {"calls": CALLS, "in_flight": in_flight}
                    ours.append(asyncio.run(rate(address, METHOD, request, **how)))
                    theirs.append(asyncio.run(rate(ceiling, "/bench.Empty/Call", request, **how)))
                show(figure(name + suffix, "requests/s", ours, theirs, goal=GOAL))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        measure("cached_alignment", f"sqlite:///{folder}/bench.db")
    with postgresql_server() as url:
        measure("cached_alignment_postgresql", new_database(url))


if __name__ == "__main__":
    main()
