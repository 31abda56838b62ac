"""Real servers with the models that ship, as docs/clients.md starts one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from unmask_server.access.principals import Budget
from unmask_server.database.connect import open_database
from unmask_server.growth.quota import Quota, Quotas

from tests.access.making import Authority
from tests.clients.guide import ROOT

DAILY = 400
"""What the programs of the guide want to sample."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Compilers take their time."""
    for item in items:
        if item.get_closest_marker("clients"):
            item.add_marker(pytest.mark.timeout(1200))


@dataclass(frozen=True, slots=True)
class Server:
    """One that listens."""

    address: str
    authority: Path | None = None
    """Who vouches for it; None: no TLS."""
    token: str = ""

    @property
    def environment(self) -> dict[str, str]:
        """What tells a client where it is."""
        given = {"UNMASK_ADDRESS": self.address}
        if self.authority:
            given |= {"UNMASK_TLS_CA": str(self.authority), "UNMASK_TOKEN": self.token}
        return given


def free_port() -> int:
    """One that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "unmask_server", *arguments]


@contextmanager
def serving(
    folder: Path, credentials: grpc.ChannelCredentials | None = None, **settings: str
) -> Iterator[str]:
    """`unmask-server serve` in the repository, over a database in `folder`; its address."""
    address = f"localhost:{free_port()}"
    database = f"sqlite:///{folder / 'unmask.db'}"
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("UNMASK_")}
    process = subprocess.Popen(
        _command("serve", "--database", database, "--listen", address),
        cwd=ROOT,
        env={**inherited, **settings},
    )
    try:
        with (
            grpc.secure_channel(address, credentials)
            if credentials
            else grpc.insecure_channel(address)
        ) as channel:
            ready = grpc.channel_ready_future(channel)
            while not ready.done():
                assert process.poll() is None, "the server ended"
                with contextlib.suppress(grpc.FutureTimeoutError):
                    ready.result(1)
        yield address
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """For whoever is on this machine."""
    with serving(tmp_path_factory.mktemp("server")) as address:
        yield Server(address)


@pytest.fixture(scope="session")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With TLS and for the holder of a token, who has had one rollout of the day's 400 already."""
    folder = tmp_path_factory.mktemp("guarded")
    authority = Authority(folder / "tls")
    certificate, key = authority.issue("localhost")
    database = f"sqlite:///{folder / 'unmask.db'}"
    subprocess.run(_command("migrate", "--database", database), cwd=ROOT, check=True)
    scope = ("--scope", "admin", "--rollouts-per-day", str(DAILY))
    token = subprocess.run(
        _command("token", "create", "ann", *scope, "--database", database),
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    store = open_database(database)
    asyncio.run(_sample_one(Quotas(store, Quota())))
    store.dispose()
    settings = {
        "UNMASK_AUTH": "tokens",
        "UNMASK_TLS_CERT": str(certificate),
        "UNMASK_TLS_KEY": str(key),
        "UNMASK_MODEL_ROOTS": "examples/models",
    }
    trusted = grpc.ssl_channel_credentials(authority.path.read_bytes())
    with serving(folder, trusted, **settings) as address:
        yield Server(address, authority.path, token)


async def _sample_one(quotas: Quotas) -> None:
    async with quotas.sampling("token:ann", Budget(rollouts_per_day=DAILY), 1, 0) as sampled:
        sampled.rollouts = 1
