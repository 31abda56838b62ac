"""A real server in a process of its own, with what chaos needs: a record of what its engines
answered, and a clock that may be wrong.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

# What a server imports sooner or later, so that each one is forked with it and starts in a moment.
import grpc
import unmask_server.engines.sglang
from unmask_server import app as app_module
from unmask_server.catalog.types import Model
from unmask_server.config import Settings
from unmask_server.engines.base import Engine as ModelEngine
from unmask_server.engines.base import PositionScores, Sample, SampleRequest, Sampling, ScoreRequest
from unmask_server.engines.pool import OpenEngine
from unmask_server.logs import configure
from unmask_server.serve import serve

from tests.chaos.model import ScriptedEngine

processes = get_context("forkserver")
processes.set_forkserver_preload([__name__])


@dataclass(frozen=True)
class Options:
    """How a server is run."""

    url: str
    socket: Path
    answered: Path
    """Where each rollout that an engine answered is written before anybody gets it."""
    lease: float = 1.0
    """Seconds after which a dead server's growth is taken over."""
    clock: float = 0.0
    """Seconds by which this machine's clock is wrong."""
    settings: dict[str, Any] = field(default_factory=dict)
    log: Path | None = None


def start(options: Options) -> Any:
    """Start the process; it has `kill` and `join`."""
    process = processes.Process(target=_run, args=(options,), daemon=True)
    process.start()
    return process


def _run(options: Options) -> None:
    if options.log is not None:
        _log_to(options.log)
    if options.clock:
        right = time.time
        time.time = lambda: right() + options.clock
    opener = app_module._opener
    app_module._opener = lambda *parts: recording(opening(opener(*parts)), options.answered)
    settings = Settings(
        database=options.url,
        listen=[f"unix:{options.socket}"],
        lease_seconds=options.lease,
        **{"grace_seconds": 0.2, **options.settings},
    )
    asyncio.run(serve(settings))


def _log_to(path: Path) -> None:
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)
    configure("console")


def opening(open_engine: OpenEngine) -> OpenEngine:
    """Open what serves a policy of `make_model`: SGLang as `open_engine` does, else its own."""

    async def opened(model: Model, vocab_size: int) -> ModelEngine:
        if model.endpoints:
            return await open_engine(model, vocab_size)
        return ScriptedEngine()

    return opened


def recording(open_engine: OpenEngine, path: Path) -> OpenEngine:
    """The same, with every answered rollout written to a file before it is handed on."""

    async def opened(model: Model, vocab_size: int) -> ModelEngine:
        return Recording(await open_engine(model, vocab_size), path)

    return opened


class Recording:
    """An engine that writes down what it answered: one line a rollout, whole or not at all."""

    def __init__(self, engine: ModelEngine, path: Path) -> None:
        self._engine = engine
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self.info = engine.info

    async def sample(
        self, requests: Sequence[SampleRequest], sampling: Sampling, stop_ids: frozenset[int]
    ) -> AsyncGenerator[Sample, None]:
        async with aclosing(self._engine.sample(requests, sampling, stop_ids)) as samples:
            async for sample in samples:
                request = requests[sample.index]
                line = {
                    "seed": request.seed,
                    "forced": len(request.forced),
                    "tokens": [*request.forced, *sample.tokens],
                    "finish": sample.finish.value,
                }
                os.write(self._file, json.dumps(line).encode() + b"\n")
                yield sample

    async def score(self, request: ScoreRequest) -> list[PositionScores]:
        return await self._engine.score(request)

    async def close(self) -> None:
        os.close(self._file)
        await self._engine.close()


# Named so that they stay: they are here for the forks.
PRELOADED = (grpc, unmask_server.engines.sglang)
