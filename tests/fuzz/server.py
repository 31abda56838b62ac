"""A real server in a process of its own, with small limits, watched from outside."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import psutil

MIB = 2**20
LIMITS = {
    "max_rollouts": 40,
    "max_tokens": 1000,
    "max_message_mib": 1,
    "answer_cache_mib": 4,
    "threads": 1,
    "sglang_patience_seconds": 1,
    "sglang_timeout_seconds": 5,
    "lease_seconds": 5,
    "log_format": "json",
}
"""Settings that keep what a fuzzed request may cost small."""
_EVERY_SECONDS = 0.2


@dataclass
class Watched:
    """A running server."""

    process: subprocess.Popen[bytes]
    socket: Path
    log: Path
    channel: grpc.aio.Channel
    resident: list[float] = field(default_factory=list)
    """MiB of the server, from time to time."""
    grader: float = 0.0
    """MiB of the largest of its graders, which are processes of their own, at most."""

    @property
    def target(self) -> str:
        return f"unix:{self.socket}"

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    def measure(self) -> None:
        """Note what it and its graders hold in memory now."""
        root = psutil.Process(self.process.pid)
        self.resident.append(root.memory_info().rss / MIB)
        for one in root.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                self.grader = max(self.grader, one.memory_info().rss / MIB)

    def complaints(self, start: int = 0) -> list[str]:
        """What its log says of errors that nobody foresaw, from a byte of it on."""
        with self.log.open("rb") as file:
            file.seek(start)
            text = file.read().decode(errors="replace")
        return list(_complaints(text))


def _complaints(log: str) -> Iterator[str]:
    """Tracebacks: of the server's own lines of JSON, and those that others print."""
    others: list[str] = []
    for line in log.splitlines():
        try:
            said = json.loads(line)
        except ValueError:
            others.append(line)
            continue
        if (raised := said.get("exception", "")) and not _is_usual(raised):
            yield f"{said.get('method', said.get('event'))}: {raised}"
    told = "\n".join(others)
    for before, after in itertools.pairwise(told.split("Traceback (most recent call last):")):
        # gRPC's own words about clients that went away.
        if "ExecuteBatchError" not in after and "UsageError" not in after:
            yield f"{before[-200:]} Traceback {after[:3000]}"
    if "Fatal Python error" in told:
        yield told[-3000:]


def _is_usual(raised: str) -> bool:
    """Whether a growth was told that the database is busy, and goes on; or a client went away."""
    usual = ("TimeoutError: another writer held the database", "ExecuteBatchError")
    return any(one in raised for one in usual)


@asynccontextmanager
async def watched(url: str, folder: Path, **settings: object) -> AsyncIterator[Watched]:
    """Run `unmask-server serve` over a database until the end of the block."""
    folder.mkdir(parents=True, exist_ok=True)
    here, log, socket = folder / "here", folder / "log", folder / "socket"
    # Relative paths in requests lead nowhere.
    here.mkdir(exist_ok=True)
    given = {f"UNMASK_{key.upper()}": str(value) for key, value in (LIMITS | settings).items()}
    path = os.pathsep.join(str(Path(part).resolve()) for part in sys.path if part or part == "")
    with log.open("ab") as output:
        process = subprocess.Popen(  # noqa: ASYNC220 - starting it takes no time
            [sys.executable, "-m", "unmask_server", "serve", "--database", url, "--listen",
             f"unix:{socket}"],
            cwd=here, env={**os.environ, "PYTHONPATH": path, **given}, stdout=output, stderr=output,
        )  # fmt: skip
    try:
        async with grpc.aio.insecure_channel(f"unix:{socket}") as channel:
            await asyncio.wait_for(channel.channel_ready(), 120)
            server = Watched(process, socket, log, channel)
            done = threading.Event()
            watching = threading.Thread(target=_watch, args=(server, done), daemon=True)
            watching.start()
            try:
                yield server
            finally:
                done.set()
                watching.join()
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _watch(server: Watched, done: threading.Event) -> None:
    while not done.wait(_EVERY_SECONDS):
        try:
            server.measure()
        except psutil.NoSuchProcess:
            return
