"""A server's parts as its metrics look at them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from importlib.metadata import version

import structlog
from sqlalchemy.pool import QueuePool

from unmask_server.app import App
from unmask_server.config import Settings
from unmask_server.database.migrate import head_revision
from unmask_server.telemetry.expose import exposed
from unmask_server.telemetry.gauges import Answers, Build, Store, watching

log = structlog.get_logger(__name__)


class WatchedApp:
    """See `telemetry.gauges.Watched`."""

    def __init__(self, app: App, settings: Settings) -> None:
        self._app = app
        self._build = Build(version("unmask"), app.database.dialect.name, head_revision())
        self._limit = 2 * settings.database_pool

    def build(self) -> Build:
        """What runs."""
        return self._build

    def growths(self) -> int:
        """Growths at work here."""
        return len(self._app.runner.at_work)

    def answers(self) -> Answers:
        """Kept answers."""
        return self._app.answers.counts

    def engines(self) -> int:
        """Engines that have started."""
        return len(self._app.engines.running())

    def replicas(self) -> tuple[int, int]:
        """SGLang servers of running engines: those that answer, and those left out."""
        found = [
            replicas
            for engine in self._app.engines.running()
            if (replicas := getattr(engine, "replicas", None)) is not None
        ]
        up = sum(replicas.up for replicas in found)
        return up, sum(len(replicas.all) for replicas in found) - up

    def connections(self) -> tuple[int, int, int]:
        """To the database: in use, idle, and how many there may be."""
        pool = self._app.database.pool
        assert isinstance(pool, QueuePool)
        return pool.checkedout(), pool.checkedin(), self._limit

    def store(self) -> Store:
        """Asks the database."""
        return Store(*self._app.trees.sizes())


@contextlib.asynccontextmanager
async def metrics_served(app: App, settings: Settings) -> AsyncIterator[None]:
    """Serve metrics while the context is open, if they are wanted.

    Raises:
        ValueError: not at that address.

    """
    if not settings.metrics_listen:
        yield
        return
    async with watching(WatchedApp(app, settings)):
        with exposed(settings.metrics_listen) as address:
            log.info("metrics", listen=address)
            yield
