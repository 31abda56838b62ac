"""Models for which this server runs SGLang servers of its own (managed mode)."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from unmask_server.catalog.types import Model
from unmask_server.config import Settings
from unmask_server.engines.base import EngineError

if TYPE_CHECKING:
    from unmask_server.engines.sglang.launch import ManagedSglang


class LaunchedModels:
    """SGLang servers by the directory of the model they run.

    Whatever is registered with such a directory runs on its server. The servers start in the
    background: what needs one waits until it is healthy, everything else is answered meanwhile.
    """

    def __init__(self, settings: Settings, trust: Callable[[str], None] = lambda url: None) -> None:
        """Nothing is started yet.

        Args:
            settings: say which.
            trust: told the address of each: it may be called, whatever requests may name.

        Raises:
            ValueError: a launch names no model directory, or one that another launch names.

        """
        self._servers: dict[Path, ManagedSglang] = {}
        for text in settings.sglang_launch:
            model, *arguments = shlex.split(text) or [""]
            folder = _resolved(model)
            if not model or not folder.is_dir():
                raise ValueError(f"sglang_launch: {model!r} is no model directory")
            if folder in self._servers:
                raise ValueError(f"sglang_launch: {model} is launched twice")
            # Imported late: a server that launches nothing needs no HTTP client.
            from unmask_server.engines.sglang.launch import COMMAND, Launch, ManagedSglang

            command = shlex.split(settings.sglang_command) or COMMAND
            server = ManagedSglang(Launch(str(folder), command, arguments))
            self._servers[folder] = server
            trust(server.url)

    def start(self) -> None:
        """Start them all; returns at once.

        Raises:
            ValueError: there is no such program.

        """
        for server in self._servers.values():
            try:
                server.start()
            except EngineError as error:
                raise ValueError(str(error)) from None

    @property
    def states(self) -> dict[str, bool]:
        """Directories of the models, and whether their servers answer."""
        return {str(folder): server.is_healthy for folder, server in self._servers.items()}

    async def endpoints(self, path: str) -> tuple[str, ...]:
        """Where a model directory is served, once it is; empty if it is not launched here.

        Raises:
            EngineError: its server does not start.

        """
        server = self._servers.get(_resolved(path)) if path else None
        if server is None:
            return ()
        await server.ready()
        return (server.url,)

    async def served(self, model: Model, vocab_size: int) -> Model:
        """A registered model, with the server that is launched for it, if one is.

        The address may be another one than when it was registered, and the model may have been
        registered before it was launched here; so the server is looked at again.

        Raises:
            EngineError: its server does not start, or runs another model.

        """
        endpoints = await self.endpoints(model.source)
        if not endpoints:
            return model
        from unmask_server.engines.sglang import MismatchError, inspect

        try:
            found = await inspect(endpoints, columns=model.vocab_size, usable=vocab_size)
        except MismatchError as error:
            raise EngineError(str(error)) from None
        return replace(model, endpoints=endpoints, serving=found.to_json())

    async def close(self) -> None:
        """End them all. Returns when their processes are gone."""
        await asyncio.gather(*(server.close() for server in self._servers.values()))


def _resolved(path: str) -> Path:
    return Path(path).expanduser().resolve()
