"""The engines that are running, by model."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any

import structlog

from unmask_server.catalog.types import Model
from unmask_server.engines.base import Engine, EngineError

log = structlog.get_logger(__name__)

FAILURE_SECONDS = 60.0
"""A model that could not be started counts as one that cannot for so long; then nobody knows."""

OpenEngine = Callable[[Model, int], Coroutine[Any, Any, Engine]]
"""Starts a model. The number is how many ids have a token: higher columns are cut off."""


class EnginePool:
    """Starts an engine when a model is first needed, and keeps the most recently used ones.

    Teachers that share a checkpoint (self-distillation with several contexts) share an engine.
    """

    def __init__(self, open_engine: OpenEngine, *, max_engines: int) -> None:
        self._open = open_engine
        self._max = max_engines
        self._engines: OrderedDict[str, asyncio.Task[Engine]] = OrderedDict()
        self._models: dict[str, Model] = {}
        self._users: dict[str, int] = {}
        self._failures: dict[str, tuple[float, str]] = {}

    async def get(self, model: Model, vocab_size: int) -> Engine:
        """The engine of a model, started if need be.

        Raises:
            EngineError: it cannot be started, for example because its directory is gone.

        """
        key = _key(model)
        task = self._engines.get(key)
        if task is None or _failed(task):
            log.info("engine starting", model=model.source)
            # Others will use it, too: it is no part of the call that came first.
            task = asyncio.create_task(self._open(model, vocab_size), context=Context())
            self._engines[key], self._models[key] = task, model
        self._engines.move_to_end(key)
        await self._shrink()
        try:
            # A caller that gives up must not stop the start that others wait for.
            engine = await asyncio.shield(task)
        except (OSError, ValueError, RuntimeError) as error:
            message = f"the model at {model.source} cannot be started: {error}"
            self._failures[model.source] = (time.monotonic(), message)
            raise EngineError(message) from error
        except EngineError as error:
            self._failures[model.source] = (time.monotonic(), str(error))
            raise
        self._failures.pop(model.source, None)
        return engine

    def failure(self, source: str) -> str:
        """Why the model of a directory could not be started a moment ago; empty: it could."""
        at, message = self._failures.get(source, (0.0, ""))
        return message if message and time.monotonic() - at < FAILURE_SECONDS else ""

    def running(self) -> list[Engine]:
        """Engines that have started."""
        return [
            task.result()
            for task in list(self._engines.values())
            if task.done() and not _failed(task)
        ]

    def models(self) -> list[Model]:
        """Those whose engines have started, or are starting."""
        return [self._models[key] for key, task in self._engines.items() if not _failed(task)]

    def hold(self, model: Model) -> EngineHold:
        """While the returned context is open, this model's engine is not put away."""
        return EngineHold(self._users, _key(model))

    async def _shrink(self) -> None:
        for key in list(self._engines):
            if len(self._engines) <= self._max:
                return
            task = self._engines[key]
            if task.done() and not self._users.get(key) and key != next(reversed(self._engines)):
                del self._engines[key], self._models[key]
                if not _failed(task):
                    await task.result().close()

    async def close(self) -> None:
        """Stop every engine."""
        for task in self._engines.values():
            task.cancel()
            try:
                engine = await task
            except (asyncio.CancelledError, Exception):
                continue
            await engine.close()
        self._engines.clear()
        self._models.clear()


def _failed(task: asyncio.Task[Engine]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)


def _key(model: Model) -> str:
    """A model that is served elsewhere from now on needs another engine."""
    return " ".join((model.fingerprint, *model.endpoints))


class EngineHold:
    """See `EnginePool.hold`."""

    def __init__(self, users: dict[str, int], key: str) -> None:
        self._users = users
        self._key = key

    def __enter__(self) -> None:
        self._users[self._key] = self._users.get(self._key, 0) + 1

    def __exit__(self, *_: object) -> None:
        self._users[self._key] -= 1
        if not self._users[self._key]:
            del self._users[self._key]
