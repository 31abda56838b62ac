"""Whether the registered models can be run."""

from __future__ import annotations

import asyncio
import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine, select

from unmask_server.access.sources import Sources
from unmask_server.database.connect import read
from unmask_server.database.schema import model
from unmask_server.engines.pool import EnginePool
from unmask_server.launched import LaunchedModels

NEWEST = 32
"""So many models are looked at, the newest ones, beside those that this server has at work."""
PROBE_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Registered:
    """A model that may be asked for."""

    source: str
    """Its directory."""
    endpoints: tuple[str, ...] = ()
    """SGLang servers that run it; none: it is run here."""


class ModelsCheck:
    """Looks whether any of the models can be run now.

    One that can is enough: calls that need another are told so by their own error.
    """

    def __init__(
        self, database: Engine, engines: EnginePool, launched: LaunchedModels, sources: Sources
    ) -> None:
        self._database = database
        self._engines = engines
        self._launched = launched
        self._registered: Sequence[Registered] = ()
        self._sources = sources

    async def problem(self, *, store_is_there: bool) -> str:
        """Why none of them can be run; empty if one can, or there is none.

        Args:
            store_is_there: whether the database can be asked what is registered; otherwise it is
                what it was.

        """
        if store_is_there:
            self._registered = await asyncio.to_thread(self._read)
        at_work = (_registered(m.source, m.endpoints) for m in self._engines.models())
        looked_at = dict.fromkeys((*self._registered, *at_work))
        states = self._launched.states
        if any(states.values()) or not (looked_at or states):
            return ""
        problems = {f"SGLang has not started for {folder}" for folder in states}
        for one in looked_at:
            if one.endpoints or one.source in states:
                continue
            if not (problem := self._problem_here(one.source)):
                return ""
            problems.add(problem)
        urls = sorted({url for one in looked_at for url in one.endpoints})
        if await self._any_answers(urls):
            return ""
        return "; ".join([*(f"{url} does not answer" for url in urls), *sorted(problems)])

    def _read(self) -> list[Registered]:
        wanted = (
            select(model.c.source, model.c.endpoints)
            .order_by(model.c.created_at.desc())
            .limit(NEWEST)
        )
        with read(self._database) as connection:
            rows = connection.execute(wanted).all()
        return [_registered(row.source, row.endpoints or ()) for row in rows]

    def _problem_here(self, source: str) -> str:
        if importlib.util.find_spec("torch") is None:
            return "the embedded engine is not installed"
        if not os.access(Path(source) / "config.json", os.R_OK):
            return f"{source} cannot be read"
        return self._engines.failure(source)

    async def _any_answers(self, urls: Sequence[str]) -> bool:
        """Whether one of these is healthy. Nothing is called that may not be."""
        if not urls:
            return False
        # Imported late: a server without SGLang may have no HTTP client.
        try:
            from aiohttp import ClientError, ClientSession, ClientTimeout

            from unmask_server.engines.sglang.sessions import open_session
        except ImportError:
            return False
        timeout = ClientTimeout(total=PROBE_SECONDS)

        async def answers(session: ClientSession, url: str) -> bool:
            try:
                async with session.get(
                    f"{url.rstrip('/')}/health", timeout=timeout, allow_redirects=False
                ) as response:
                    return response.status == 200
            except (ClientError, TimeoutError, OSError):
                return False

        async with open_session(self._sources.may_call(urls)) as session:
            return any(await asyncio.gather(*(answers(session, url) for url in urls)))


def _registered(source: str, endpoints: Sequence[str]) -> Registered:
    return Registered(str(Path(source).resolve()), tuple(endpoints))
