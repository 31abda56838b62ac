"""The standard health service: what of this server can be used now.

""           everything that only reads: the store is there, at the right revision
each service as "", and unmask.v1.GrowthService only while a model can be run
"store"      the database
"engine"     whatever runs the models
"live"       the process answers; whether to restart it, not whether to use it
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import structlog
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio as health_aio
from unmask import __version__

log = structlog.get_logger(__name__)

LOOK_SECONDS = 2.0
"""How often the parts are looked at."""
MISSES = 2
"""Looks in a row that an engine must miss: one slow answer under load is no reason to leave."""
ENGINES_SECONDS = 10.0
"""What a look at the models may take; without an answer they are what they were."""

VERSION_METADATA = "unmask-version"
"""Trailing metadata of Check."""
LIVE, STORE, ENGINE = "live", "store", "engine"
SAMPLING = frozenset(("unmask.v1.GrowthService",))
"""Services that are of no use while no model can be run. All others have what they can read."""

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Store(Protocol):
    """See `readiness.store.StoreCheck`."""

    async def problem(self) -> str:
        """What is wrong; empty: nothing."""
        ...


class Models(Protocol):
    """See `readiness.models.ModelsCheck`."""

    async def problem(self, *, store_is_there: bool) -> str:
        """What is wrong; empty: nothing."""
        ...


class HealthService(health_aio.HealthServicer):
    """The servicer; streams of Watch end when the server does."""

    def __init__(self) -> None:
        super().__init__()
        self._watching: set[asyncio.Task[Any]] = set()

    async def Check(
        self, request: health_pb2.HealthCheckRequest, context: Any
    ) -> health_pb2.HealthCheckResponse:
        """See grpc.health.v1.Health. The version of the server goes with the answer."""
        context.set_trailing_metadata(((VERSION_METADATA, __version__),))
        return await super().Check(request, context)

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> None:
        """See grpc.health.v1.Health."""
        task = asyncio.ensure_future(super().Watch(request, context))
        self._watching.add(task)
        try:
            await asyncio.wait([task])
        finally:
            self._watching.discard(task)
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    def end_watches(self) -> None:
        """End all streams; whoever watches has been told what was last."""
        for task in self._watching:
            task.cancel()


class Health:
    """Looks at the parts again and again, and tells the servicer."""

    def __init__(self, services: Sequence[str], store: Store, models: Models) -> None:
        self.servicer = HealthService()
        self._services = services
        self._store = store
        self._models = models
        self._problems: dict[str, str] = {STORE: "", ENGINE: ""}
        self._misses = 0
        self._task: asyncio.Task[None] | None = None

    @property
    def problems(self) -> Mapping[str, str]:
        """What is wrong with `store` and `engine`; empty: nothing."""
        return self._problems

    async def start(self) -> None:
        """Look once, then go on looking."""
        await self.servicer.set(LIVE, _SERVING)
        await self.look()
        self._task = asyncio.create_task(self._keep())

    async def look(self) -> None:
        """Look at everything now."""
        store = await self._store.problem()
        # Told first: to look at the models takes what others of this server may be waiting for.
        self._tell(STORE, store)
        await self._set_all()
        try:
            async with asyncio.timeout(ENGINES_SECONDS):
                engine = await self._models.problem(store_is_there=not store)
        except Exception as error:
            log.warning("the engines could not be looked at", error=str(error) or "no time left")
            engine = self._problems[ENGINE]
        self._misses = self._misses + 1 if engine else 0
        if engine and self._misses < MISSES and self._task is not None:
            engine = self._problems[ENGINE]
        self._tell(ENGINE, engine)
        await self._set_all()

    async def _set_all(self) -> None:
        store, engine = self._problems[STORE], self._problems[ENGINE]
        for name in ("", *self._services):
            await self._set(name, not store and not (engine and name in SAMPLING))
        await self._set(STORE, not store)
        await self._set(ENGINE, not engine)

    async def stop(self) -> None:
        """Say NOT_SERVING for good."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self.servicer.enter_graceful_shutdown()

    async def _set(self, name: str, is_well: bool) -> None:
        await self.servicer.set(name, _SERVING if is_well else _NOT_SERVING)

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await self.look()
            except Exception:
                log.exception("looking after the health failed; trying again")

    def _tell(self, part: str, problem: str) -> None:
        if problem and not self._problems[part]:
            log.warning("not ready", part=part, problem=problem)
        elif self._problems[part] and not problem:
            log.info("ready again", part=part)
        self._problems[part] = problem
