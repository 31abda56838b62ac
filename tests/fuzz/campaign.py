"""From an empty store to what its server answered, and to what it should not have."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
from unmask_server.computing import PARSING
from unmask_server.database.connect import open_database
from unmask_server.database.limits import UNLIMITED
from unmask_server.database.migrate import migrate
from unmask_server.tree import fsck

from tests.fuzz import canary, frames
from tests.fuzz.calls import Sent
from tests.fuzz.drive import Fuzz
from tests.fuzz.pool import Pool
from tests.fuzz.report import Result, tell, write_into
from tests.fuzz.rpcs import all_rpcs
from tests.fuzz.seeds import fill_server, make_models
from tests.fuzz.server import LIMITS, Watched, watched
from tests.fuzz.shrink import attempt, examine
from tests.stores import new_database, postgresql_server

CHANNELS = 4
WORKERS = 32
WARM_PART = 5
"""After this part of the requests a server has done everything that it does, ..."""
WARM_REQUESTS = 4_000
"""... if it is as many as these."""
PARSED = 27
"""What a request of empty messages takes as a message, over its bytes."""
ROOM_MIB = 64
"""What a server's heap may grow by, beside its caches, once it has done everything once."""


@dataclass(frozen=True)
class Plan:
    """What is asked for."""

    seed: int
    requests: int
    """For each store."""
    connections: int
    """Raw ones, for each store."""
    minutes: float
    """After which no more requests are begun."""
    stores: tuple[str, ...]
    save: Path
    page: Path | None = None
    replay: Path | None = None


def bound_of(warm: float) -> float:
    """MiB that a server may hold that held so many once it had done everything once.

    Its answer cache may fill, each request under way may be as large as a message can be, twice: as
    bytes and as a message; and those being parsed may turn out to be of very many parts.
    """
    in_flight = (WORKERS * 2 + PARSING * PARSED) * LIMITS["max_message_mib"]
    return warm + LIMITS["answer_cache_mib"] + in_flight + ROOM_MIB


async def fuzz_store(store: str, url: str, folder: Path, plan: Plan) -> Result:
    """Fuzz a server over an empty database."""
    models = folder / "models"
    folders = make_models(models)
    migrate(url)
    async with watched(url, folder / "server", model_roots=models) as server:
        await fill_server(server.channel, models)
        kept = await canary.make(server.channel, models)
        async with _channels(server) as channels:
            fuzz = Fuzz(channels, folders, plan.seed, Pool(kept.hidden.__contains__), store)
            refused = await fuzz.plant(models)
            begun = time.monotonic()
            first = max(plan.requests // WARM_PART, min(plan.requests, WARM_REQUESTS))
            await fuzz.run(first, workers=WORKERS)
            warm = max(server.resident)
            deadline = begun + 60.0 * plan.minutes
            await fuzz.run(plan.requests, workers=WORKERS, first=first, deadline=deadline)
            seconds = time.monotonic() - begun
        peak = max(server.resident)
        ended = await frames.attack(server, plan.seed, plan.connections)
        changed = await kept.differences(server.channel)
        result = Result(
            store=store,
            seed=plan.seed,
            requests=fuzz.counts.total(),
            seconds=seconds,
            counts=fuzz.counts,
            refused=refused,
            cases=await examine(server, fuzz.rpcs, fuzz.found),
            complaints=server.complaints(),
            changed=changed,
            fsck=_fsck(url),
            warm=warm,
            peak=peak,
            bound=bound_of(warm),
            raw_peak=max(server.resident),
            grader=server.grader,
            frames=ended,
            resident=server.resident,
            slowest={name: seconds for name, (seconds, _) in fuzz.slowest.items()},
            is_alive=server.is_alive,
        )
    async with watched(url, folder / "again") as server:
        result.changed += [f"{path} (restarted)" for path in await kept.differences(server.channel)]
    return result


@contextlib.asynccontextmanager
async def _channels(server: Watched) -> AsyncIterator[list[grpc.aio.Channel]]:
    # Each a connection of its own.
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
    channels = [grpc.aio.insecure_channel(server.target, options) for _ in range(CHANNELS)]
    try:
        yield channels
    finally:
        for channel in channels:
            await channel.close()


def _fsck(url: str) -> list[str]:
    engine = open_database(url, UNLIMITED)
    try:
        report = fsck(engine)
        return report.lines() if report.left else []
    finally:
        engine.dispose()


async def campaign(plan: Plan) -> int:
    """All stores; says what was found. Returns 0 if all is well."""
    print(f"seed {plan.seed}", flush=True)
    if plan.replay is not None:
        with tempfile.TemporaryDirectory(prefix="fuzz") as name, database("sqlite", name) as url:
            return await _replay(plan.replay, url, Path(name))
    results = await asyncio.gather(*(_campaign(store, plan) for store in plan.stores))
    if plan.page is not None:
        write_into(plan.page, results)
    return int(any(result.violations for result in results))


async def _campaign(store: str, plan: Plan) -> Result:
    with tempfile.TemporaryDirectory(prefix="fuzz") as name, database(store, name) as url:
        result = await fuzz_store(store, url, Path(name), plan)
    tell(result, {rpc.path: rpc for rpc in all_rpcs()}, plan.save)
    return result


async def _replay(file: Path, url: str, folder: Path) -> int:
    sent = Sent.from_json(file.read_text())
    (rpc,) = (rpc for rpc in all_rpcs() if rpc.path == sent.path)
    make_models(folder / "models")
    migrate(url)
    async with watched(url, folder / "server") as server:
        await fill_server(server.channel, folder / "models")
        fuzz = Fuzz([server.channel], [], 0, Pool())
        await fuzz.plant(folder / "models")
        wrong, log = await attempt(server, rpc, sent)
    print(f"{wrong or 'answered as it should be'}\n{log}")
    return int(bool(wrong))


@contextlib.contextmanager
def database(store: str, folder: str) -> Iterator[str]:
    """An empty one."""
    if store == "sqlite":
        yield f"sqlite:///{folder}/unmask.db"
        return
    with postgresql_server() as server:
        yield new_database(server)
