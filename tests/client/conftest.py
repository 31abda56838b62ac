"""Fixtures of the client's tests."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import unmask

from tests.client.scripted import ScriptedServer


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with tempfile.TemporaryDirectory() as folder:
        server = ScriptedServer(Path(folder))
        yield server
        server.close()


@pytest.fixture
def client(server: ScriptedServer) -> Iterator[unmask.Client]:
    with unmask.Client(server.address, timeout=20) as client:
        yield client
