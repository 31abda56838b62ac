"""A server in a process of its own that logs JSON to a file and serves its metrics."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.conftest import Stubs, World, fill, models

__all__ = ["models"]

Line = dict[str, Any]
SECONDS = 60.0
"""What is waited for comes in a moment, on a loaded machine too."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A server's first import of torch may take a minute on a busy machine."""
    for item in items:
        if "tests/telemetry" in str(item.path):
            item.add_marker(pytest.mark.timeout(300))


@dataclass
class Told:
    """What a server tells."""

    stubs: Stubs
    log: Path
    metrics_port: int

    def lines(self, **fields: object) -> list[Line]:
        """Log lines with these values."""
        found = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [line for line in found if fields.items() <= line.items()]

    async def line(self, **fields: object) -> Line:
        """The one such line, as soon as it is there."""
        found = await eventually(lambda: self.lines(**fields))
        assert len(found) == 1, found
        return found[0]

    def scraped(self) -> str:
        """All metrics, as Prometheus gets them."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics") as answer:
            return str(answer.read().decode())

    def samples(self) -> Iterator[tuple[str, Mapping[str, str], float]]:
        """Name, labels and value of everything that is scraped."""
        for family in text_string_to_metric_families(self.scraped()):
            for sample in family.samples:
                yield sample.name, sample.labels, sample.value

    def value(self, name: str, **labels: str) -> float:
        """The sum of the samples of that name with these labels."""
        return sum(v for n, ls, v in self.samples() if n == name and labels.items() <= ls.items())


async def eventually(look: Callable[[], Any]) -> Any:
    """What `look` finds, as soon as that is something."""
    async with asyncio.timeout(SECONDS):
        while not (found := look()):  # noqa: ASYNC110 - another process tells it
            await asyncio.sleep(0.01)
        return found


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def telling(folder: Path, url: str, **environment: str) -> AsyncIterator[Told]:
    """A server over a database, killed at the end."""
    port, log = free_port(), folder / "log"
    env = {
        "PATH": "", "PYTHONPATH": ":".join(sys.path), "UNMASK_DATABASE": url,
        "UNMASK_LISTEN": f"unix:{folder}/socket", "UNMASK_METRICS_LISTEN": f"127.0.0.1:{port}",
        "UNMASK_LOG_FORMAT": "json", "UNMASK_LOG_LEVEL": "debug", "UNMASK_THREADS": "1",
    } | environment  # fmt: skip
    with log.open("wb") as out:
        process = subprocess.Popen(  # noqa: ASYNC220 - starting it takes no time
            [sys.executable, "-m", "unmask_server", "serve"], env=env, stderr=out
        )
    try:
        async with grpc.aio.insecure_channel(f"unix:{folder}/socket") as channel:
            await asyncio.wait_for(channel.channel_ready(), 120)
            yield Told(Stubs(channel), log, port)
    finally:
        process.kill()
        process.wait()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def told(
    tmp_path_factory: pytest.TempPathFactory,
    models: Path,
) -> AsyncIterator[Told]:
    """One for all tests that only look."""
    folder = tmp_path_factory.mktemp("told")
    async with telling(folder, f"sqlite:///{folder}/unmask.db", UNMASK_ACCESS_LOG="all") as server:
        await fill(World(server.stubs, "", None, None), models)  # type: ignore[arg-type]
        yield server
