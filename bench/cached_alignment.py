"""Requests a second for a cached alignment, over an empty `grpc.aio` call that answers as much.

Four teachers under one algorithm; 16 requests in flight from another process, as bytes on both
sides, so that the servers are what is compared. Then the same one request at a time. As clients and
servers share the cores, the processor time of the servers for one request is compared, too.
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
import psutil

from bench.figures import figure, show
from bench.served import prepare, server
from tests.stores import new_database, postgresql_server

METHOD = "/unmask.v1.DiagnosisService/GetAlignment"
ROUNDS, CALLS, IN_FLIGHT = 7, 2000, 16
GOAL = 0.6


@contextmanager
def empty(folder: str, size: int) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The ceiling: its address and process."""
    address = f"unix:{folder}/e"
    process = subprocess.Popen([sys.executable, "-m", "bench.empty_server", address, str(size)])
    try:
        with grpc.insecure_channel(address) as channel:
            grpc.channel_ready_future(channel).result(timeout=30)
        yield address, process
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


def cpu_seconds(process: subprocess.Popen[bytes]) -> float:
    """That a process has used so far."""
    times = psutil.Process(process.pid).cpu_times()
    return float(times.user + times.system)


def measure(name: str, database: str) -> None:
    """Three figures on one store."""
    with (
        tempfile.TemporaryDirectory() as folder,
        server(database) as (address, process),
    ):
        request = prepare(address, Path(folder)).SerializeToString()
        with grpc.insecure_channel(address) as channel:
            size = len(channel.unary_unary(METHOD)(request))
        with empty(folder, size) as (ceiling, ceiling_process):
            sides = ((address, METHOD, process), (ceiling, "/bench.Empty/Call", ceiling_process))
            for suffix, in_flight in (("", IN_FLIGHT), ("_one_at_a_time", 1)):
                rates: tuple[list[float], list[float]] = ([], [])
                used: tuple[list[float], list[float]] = ([], [])
                for _ in range(ROUNDS):
                    for side, (where, method, serving) in enumerate(sides):
                        before = cpu_seconds(serving)
                        how = {"calls": CALLS, "in_flight": in_flight}
                        rates[side].append(asyncio.run(rate(where, method, request, **how)))
                        used[side].append((cpu_seconds(serving) - before) / CALLS * 1e6)
                show(figure(name + suffix, "requests/s", *rates, goal=GOAL))
                if in_flight == IN_FLIGHT:
                    show(figure(f"{name}_processor_time", "us/request", *used,
                                goal=round(1 / GOAL, 2), direction="down"))  # fmt: skip


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        measure("cached_alignment", f"sqlite:///{folder}/bench.db")
    with postgresql_server() as url:
        measure("cached_alignment_postgresql", new_database(url))


if __name__ == "__main__":
    main()
