"""Managed mode: an SGLang server as a child of ours, kept running."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import sys
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import structlog

from unmask_server.engines.base import EngineError
from unmask_server.engines.sglang.child import Child

log = structlog.get_logger(__name__)

COMMAND = (sys.executable, "-m", "sglang.launch_server")
"""SGLang, where it is installed beside us."""
PROBE_SECONDS = 10.0
"""After which one health probe is given up."""
_STATISTICS = ("Prefill batch", "Decode batch", "GET /health", "POST /generate")
"""What an SGLang server says without end; logged as debug."""


class LaunchError(EngineError):
    """SGLang does not start, or does not stay up. Says so, with the last lines of its log."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long things may take, in seconds, and how often they may fail."""

    start: float = 1800.0
    """Until it is healthy; large models are loaded, and kernels compiled, for many minutes."""
    stop: float = 10.0
    """Between asking it to end and killing it."""
    poll: float = 0.5
    """Between two health probes while it starts."""
    progress: float = 5.0
    """Between two lines that say that it is still starting."""
    steady: float = 60.0
    """A server that was healthy for so long counts as well; a death before is a quick one."""
    first_pause: float = 1.0
    """Before the restart after a quick death; doubles with each further one."""
    longest_pause: float = 60.0
    """Where that doubling ends."""
    failed_starts: int = 3
    """So many starts in a row that never became healthy, and it is given up: a wrong flag, no
    memory."""
    quick_deaths: int = 12
    """So many quick deaths in a row, and it is given up. More than `failed_starts`, since a single
    request may kill a healthy server as often as it is sent again."""


@dataclass(frozen=True, slots=True)
class Launch:
    """What to start."""

    model: str
    """A model directory (or whatever SGLang takes for `--model-path`)."""
    command: Sequence[str] = COMMAND
    """What starts SGLang; it may live in another environment."""
    arguments: Sequence[str] = ()
    """For SGLang, after ours, so that they win."""
    host: str = "127.0.0.1"
    port: int = 0
    """0 for a free one."""
    patience: Patience = field(default_factory=Patience)


class ManagedSglang:
    """Runs an SGLang server: starts it again when it dies, and ends it with this process.

    `async with ManagedSglang(Launch("path/to/model")) as managed: await managed.ready()`. Its
    address stays the same through restarts. Whatever happens to this process, SIGKILL included,
    none of SGLang's processes is left.
    """

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self.restarts = 0
        """How often it was started again."""
        self._name = Path(launch.model).name
        self._reserved = _reserve(launch.host) if launch.port == 0 else None
        self._port = self._reserved.getsockname()[1] if self._reserved else launch.port
        self._files = _state_of(launch.model)
        self._healthy = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._child: Child | None = None

    @property
    def url(self) -> str:
        """Where it listens: `http://127.0.0.1:PORT`."""
        return f"http://{self.launch.host}:{self._port}"

    @property
    def pid(self) -> int | None:
        """The process under which all of SGLang's are; None while there is none."""
        return self._child.pid if self._child and not self._child.ended else None

    @property
    def is_healthy(self) -> bool:
        """Whether it was found healthy since its last start, and has not died since."""
        return self._healthy.is_set()

    def start(self) -> None:
        """Start it, and keep it running. Returns at once; see `ready`.

        Raises:
            LaunchError: there is no such program.

        """
        program = self.launch.command[0]
        if shutil.which(program) is None:
            raise LaunchError(f"SGLang cannot be started: there is no program {program!r}")
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._keep())

    async def ready(self) -> None:
        """Wait until it is healthy; returns at once if it is.

        Raises:
            LaunchError: it was given up, or closed.

        """
        if self._keeper is None:
            raise LaunchError("SGLang was not started")
        waiting = asyncio.create_task(self._healthy.wait())
        try:
            await asyncio.wait({waiting, self._keeper}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        if self._keeper.done():
            if self._keeper.cancelled():
                raise LaunchError("SGLang was stopped")
            await self._keeper

    async def close(self) -> None:
        """End it and all its processes. Returns when they are gone."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        if self._reserved is not None:
            self._reserved.close()

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def _keep(self) -> None:
        """Run it, again and again. Ends only by being cancelled, or giving up."""
        patience = self.launch.patience
        failed_starts = quick_deaths = 0
        while True:
            lived, how, tail = await self._run_once()
            failed_starts = failed_starts + 1 if lived is None else 0
            quick_deaths = quick_deaths + 1 if lived is None or lived < patience.steady else 0
            log.error("SGLang died", model=self._name, how=how, last_lines=tail)
            if failed_starts >= patience.failed_starts or quick_deaths >= patience.quick_deaths:
                log.error("SGLang is given up", model=self._name)
                raise LaunchError(
                    f"SGLang for {self.launch.model} {how}, {max(failed_starts, quick_deaths)} "
                    f"times in a row; its last lines:\n{_shown(tail)}"
                )
            if quick_deaths:
                pause = patience.first_pause * 2.0 ** (quick_deaths - 1)
                await asyncio.sleep(min(pause, patience.longest_pause))
            self._check_files()
            self.restarts += 1

    async def _run_once(self) -> tuple[float | None, str, list[str]]:
        """One life: how long it was healthy (None: never), how it ended, its last lines."""
        child = await Child.start(
            self._command(), grace=self.launch.patience.stop, on_line=self._pass_on
        )
        self._child = child
        healthy_since = None
        how = "was not healthy in time"
        try:
            if await self._becomes_healthy(child):
                self._check_files()
                healthy_since = time.monotonic()
                self._healthy.set()
                how = await child.wait()
            elif child.ended:
                how = await child.wait()
        finally:
            self._healthy.clear()
            # Cancelled as well, it is over only when its processes are.
            await _to_the_end(child.stop())
        lived = None if healthy_since is None else time.monotonic() - healthy_since
        return lived, how, list(child.tail)

    async def _becomes_healthy(self, child: Child) -> bool:
        """Wait for its health. False if it ends before, or takes too long."""
        patience = self.launch.patience
        started = said = time.monotonic()
        log.info("starting SGLang", model=self._name, url=self.url)
        async with aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=PROBE_SECONDS)
        ) as session:
            while not child.ended:
                if await self._probe(session):
                    log.info(
                        "SGLang is ready",
                        model=self._name,
                        url=self.url,
                        seconds=round(time.monotonic() - started, 1),
                    )
                    return True
                now = time.monotonic()
                if now - started > patience.start:
                    return False
                if now - said >= patience.progress:
                    said = now
                    log.info(
                        "SGLang is starting",
                        model=self._name,
                        seconds=round(now - started),
                        last_line=child.tail[-1] if child.tail else "",
                    )
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(child.wait(), patience.poll)
        return False

    async def _probe(self, session: aiohttp.ClientSession) -> bool:
        try:
            async with session.get(f"{self.url}/health", allow_redirects=False) as answer:
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    def _check_files(self) -> None:
        if _state_of(self.launch.model) != self._files:
            raise LaunchError(
                f"the files in {self.launch.model} have changed since SGLang was first started on "
                "them; it is stopped, so that no two models share a name"
            )

    def _command(self) -> list[str]:
        return [
            *self.launch.command,
            *("--model-path", self.launch.model),
            *("--host", self.launch.host, "--port", str(self._port)),
            *self.launch.arguments,
        ]

    def _pass_on(self, line: str) -> None:
        level = log.debug if any(words in line for words in _STATISTICS) else log.info
        level(line, model=self._name)


def _shown(tail: Sequence[str]) -> str:
    """As much of its last lines as fits into an error that is sent to clients."""
    return "\n".join(line[:300] for line in tail[-10:])


def _state_of(model: str) -> list[tuple[str, int, int]]:
    """Names, sizes and times of a model directory's files; empty where it is none."""
    folder = Path(model)
    if not folder.is_dir():
        return []
    stats = [(file.name, file.stat()) for file in folder.iterdir() if file.is_file()]
    return sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


def _reserve(host: str) -> socket.socket:
    """A free port, bound but not listened at: nobody else is given it, and SGLang can take it."""
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        held.bind((host, 0))
    except OSError as error:
        held.close()
        raise LaunchError(f"no port for SGLang at {host}: {error.strerror}") from None
    return held


async def _to_the_end(work: Coroutine[Any, Any, None]) -> None:
    """Do it even if cancelled meanwhile."""
    task = asyncio.create_task(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await task
        raise
