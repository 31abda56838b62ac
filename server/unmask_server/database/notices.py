"""Notices of the database that a tree has changed, for servers that keep its version in memory.

On PostgreSQL a trigger on `tree` (migration 0007) sends one for every new version, whoever writes
it, when the transaction commits. SQLite has none.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

import structlog
from sqlalchemy import Engine

log = structlog.get_logger(__name__)

CHANNEL = "unmask_tree"
PING_SECONDS = 0.5
"""How often the connection is tried: an answer says that no notice from before it is missing."""
PING_TIMEOUT_SECONDS = 5.0
RETRY_SECONDS = 1.0


class Notices:
    """Listens on a connection of its own, which is opened again whenever it is lost."""

    def __init__(self, engine: Engine, on_tree: Callable[[int, int], None]) -> None:
        """Call `on_tree(tree_id, version)` for each notice, on the event loop."""
        self._url = engine.url
        self._on_tree = on_tree
        self._task: asyncio.Task[None] | None = None
        self.is_possible = engine.dialect.name == "postgresql"
        """Whether the database sends any."""
        self.complete_since: float | None = None
        """A time of `time.monotonic()`: of all changes committed between then and
        `complete_until` there was a notice. None: not connected."""
        self.complete_until = 0.0

    def start(self) -> None:
        """Begin to listen."""
        if self.is_possible and self._task is None:
            self._task = asyncio.create_task(self._keep())

    async def close(self) -> None:
        """Stop listening."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _keep(self) -> None:
        # Imported late: over SQLite it is not needed.
        import psycopg

        while True:
            try:
                await self._listen()
            except (psycopg.Error, OSError, TimeoutError) as error:
                log.warning("notices of other servers are late", error=str(error).strip())
            finally:
                self.complete_since = None
            await asyncio.sleep(RETRY_SECONDS)

    async def _listen(self) -> None:
        import psycopg

        url = self._url.set(drivername="postgresql").render_as_string(hide_password=False)
        async with asyncio.timeout(PING_TIMEOUT_SECONDS):
            connection = await psycopg.AsyncConnection.connect(url, autocommit=True)
        try:
            async with asyncio.timeout(PING_TIMEOUT_SECONDS):
                await connection.execute(f"LISTEN {CHANNEL}")
            since = time.monotonic()
            while True:
                asked = time.monotonic()
                async with asyncio.timeout(PING_TIMEOUT_SECONDS):
                    await connection.execute("SELECT 1")
                # What came with the answer is handed out before it counts as heard.
                async for notice in connection.notifies(timeout=0.0):
                    self._tell(notice.payload)
                self.complete_since, self.complete_until = since, asked
                async for notice in connection.notifies(timeout=PING_SECONDS):
                    self._tell(notice.payload)
        finally:
            with contextlib.suppress(psycopg.Error):
                await connection.close()

    def _tell(self, payload: str) -> None:
        tree_id, version = payload.split()
        self._on_tree(int(tree_id), int(version))
