"""What is registered: directories that can be read, SGLang servers that answer as they should."""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import make_url, select
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from unmask_server.access.listening import sources_of
from unmask_server.config import Settings
from unmask_server.database.connect import open_database, read
from unmask_server.database.schema import model
from unmask_server.doctor.finding import Finding, ok, problem, warning

NEWEST = 32
"""So many registered models are looked at."""


@dataclass(frozen=True, slots=True)
class Registered:
    """A model that something is registered with."""

    source: str
    endpoints: tuple[str, ...]
    weight_version: str | None

    @property
    def weights(self) -> int:
        """Bytes of its weights; 0 where they are not here."""
        folder = Path(self.source)
        return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def registered(settings: Settings) -> list[Registered]:
    """The newest ones; none where the database cannot be asked."""
    url = settings.database
    try:
        parsed = make_url(url)
    except ArgumentError:
        return []
    if parsed.get_backend_name() == "sqlite" and not Path(parsed.database or "").exists():
        return []
    wanted = select(model.c.source, model.c.endpoints, model.c.serving)
    wanted = wanted.order_by(model.c.created_at.desc()).limit(NEWEST)
    try:
        engine = open_database(url)
        try:
            with read(engine) as connection:
                rows = connection.execute(wanted).all()
        finally:
            engine.dispose()
    except (SQLAlchemyError, ValueError):
        return []
    return [
        Registered(
            row.source, tuple(row.endpoints or ()), (row.serving or {}).get("weight_version")
        )
        for row in rows
    ]


def directories(models: Sequence[Registered]) -> Iterator[Finding]:
    """Of every model: its tokenizer is needed wherever it runs."""
    for one in models:
        folder = Path(one.source)
        missing = [
            name
            for name in ("config.json", "tokenizer.json")
            if not os.access(folder / name, os.R_OK)
        ]
        if not folder.is_dir():
            yield problem(
                "model",
                f"{folder} is gone",
                "put it back or mount it there, or register the model from where it is",
            )
        elif missing:
            yield problem(
                "model",
                f"{folder}: {' and '.join(missing)} cannot be read",
                "let this user read them; save the tokenizer as tokenizer.json",
            )
        elif not one.endpoints and not one.weights:
            yield problem(
                "model", f"{folder} holds no *.safetensors", "save its weights as safetensors"
            )
        else:
            yield ok("model", f"{folder}")


def launches(settings: Settings) -> Iterator[Finding]:
    """What the server is to start itself."""
    command = shlex.split(settings.sglang_command)
    if command and shutil.which(command[0]) is None:
        yield problem(
            "sglang_command",
            f"there is no program {command[0]!r}",
            "give the path of the Python that has SGLang",
        )
    for text in settings.sglang_launch:
        folder = Path((shlex.split(text) or [""])[0]).expanduser()
        if folder.is_dir() and os.access(folder / "config.json", os.R_OK):
            yield ok("sglang_launch", str(folder))
        else:
            yield problem(
                "sglang_launch", f"{folder} is no model directory", "correct the path, or mount it"
            )


async def endpoints(settings: Settings, models: Sequence[Registered]) -> AsyncIterator[Finding]:
    """Of every SGLang server that something is registered with. None is called that may not be."""
    versions = {url: one.weight_version for one in models for url in one.endpoints}
    if not versions:
        return
    try:
        from unmask_server.engines.sglang.client import SglangClient
        from unmask_server.engines.sglang.sessions import open_session
    except ImportError:
        return
    urls = sorted(versions)
    async with open_session(sources_of(settings).may_call(urls)) as session:
        clients = [SglangClient(url, session, timeout=10.0) for url in urls]
        looks = (_look(one, versions[url]) for one, url in zip(clients, urls, strict=True))
        found = await asyncio.gather(*looks)
    for findings in found:
        for finding in findings:
            yield finding


async def _look(client: object, expected: str | None) -> list[Finding]:
    from unmask_server.engines.sglang.client import GoneError, RefusedError, SglangClient
    from unmask_server.engines.sglang.inspection import OLDEST

    assert isinstance(client, SglangClient)
    subject = "sglang"
    try:
        info = await client.info()
        healthy = await client.is_healthy()
    except GoneError as error:
        return [problem(subject, str(error), "start it, or register the model at another address")]
    except RefusedError as error:
        return [problem(subject, str(error), "correct the address: it is of another service")]
    findings = []
    if not healthy:
        findings.append(
            warning(
                subject, f"{client.url} is not healthy", "wait until it has started; see its log"
            )
        )
    version = tuple(int(part) for part in (info.version or "").split(".")[:3] if part.isdigit())
    if version and version < OLDEST:
        findings.append(
            problem(
                subject,
                f"{client.url} is SGLang {info.version}",
                f"upgrade to {'.'.join(map(str, OLDEST))} or later: requests can kill older ones",
            )
        )
    if not info.has_radix_cache:
        findings.append(
            warning(
                subject,
                f"{client.url} runs with --disable-radix-cache",
                "leave that out: rollouts share their prefixes",
            )
        )
    if expected is not None and info.weight_version != expected:
        findings.append(
            problem(
                subject,
                f"{client.url} has weights {info.weight_version!r}, not {expected!r}",
                "register the policy or teacher anew: its weights were updated",
            )
        )
    running = f", {info.max_running} requests at once" if info.max_running else ""
    return findings or [ok(subject, f"{client.url}: SGLang {info.version or '?'}{running}")]
