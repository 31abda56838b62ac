"""Real SGLang servers for the tests marked `sglang`, one a model for the whole session."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from unmask_server.engines.sglang.launch import ManagedSglang

from tests.sglang.real import PYTHON, processes, real
from tests.tiny import save, word_level

PADDING = 11


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Starting two real servers takes longer than a usual test may."""
    for item in items:
        if item.get_closest_marker("sglang"):
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`plain` has a row of logits a token; `padded` has more rows than tokens."""
    folder = tmp_path_factory.mktemp("models")
    return {
        "plain": save(folder / "plain", word_level(), seed=1, scale=3.0),
        "padded": save(folder / "padded", word_level(), seed=2, scale=3.0, padding=PADDING),
    }


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def servers(tiny_models: dict[str, Path]) -> AsyncIterator[dict[str, ManagedSglang]]:
    """A running SGLang server for each of `tiny_models`."""
    if not PYTHON.exists():
        pytest.fail(f"{PYTHON} is missing: run `make sglang-cpu`")
    async with (
        ManagedSglang(real(tiny_models["plain"])) as plain,
        ManagedSglang(real(tiny_models["padded"])) as padded,
    ):
        await plain.ready()
        await padded.ready()
        yield {"plain": plain, "padded": padded}
        started = [*processes(plain), *processes(padded)]
        await asyncio.gather(plain.close(), padded.close())
    assert not any(process.is_running() for process in started)
