"""From an empty store to a table of what its server answered, and to what it should not have."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from unmask_server.database.connect import open_database
from unmask_server.database.limits import UNLIMITED
from unmask_server.database.migrate import migrate
from unmask_server.tree import fsck

from tests.fuzz import canary
from tests.fuzz.calls import Answer
from tests.fuzz.drive import Found, Fuzz, as_text
from tests.fuzz.pool import Pool
from tests.fuzz.seeds import fill_server, make_models
from tests.fuzz.server import Watched, watched
from tests.stores import new_database, postgresql_server

CHANNELS = 4
WORKERS = 32


@dataclass(frozen=True)
class Plan:
    """What is asked for."""

    seed: int = 1
    requests: int = 100_000
    stores: tuple[str, ...] = ("sqlite", "postgresql")
    save: str = ".unmask/fuzz"
    page: str | None = None
    replay: str | None = None


@dataclass
class Result:
    """What became of one store's server."""

    store: str
    requests: int
    counts: Counter[tuple[str, str]]
    planted: dict[str, Answer]
    found: list[Found]
    complaints: list[str]
    changed: list[str]
    """Normal calls that are answered otherwise than before."""
    fsck: list[str]
    resident: list[float]
    settled: float
    """MiB before it was fuzzed."""
    seconds: float
    slowest: dict[str, float] = field(default_factory=dict)
    crashed: bool = False


async def fuzz_store(store: str, url: str, folder: Path, *, seed: int, requests: int) -> Result:
    """Fuzz a server over an empty database."""
    models = folder / "models"
    folders = make_models(models)
    migrate(url)
    async with watched(url, folder / "server") as server:
        await fill_server(server.channel, models)
        kept = await canary.make(server.channel, models)
        async with _channels(server) as channels:
            fuzz = Fuzz(channels, folders, seed, Pool(kept.hidden.__contains__))
            planted = await fuzz.plant(models)
            settled = server.measure()
            begun = time.monotonic()
            await fuzz.run(requests, workers=WORKERS)
            seconds = time.monotonic() - begun
        changed = await kept.differences(server.channel)
        result = Result(
            store=store,
            requests=requests,
            counts=fuzz.counts,
            planted=planted,
            found=fuzz.found,
            complaints=server.complaints(),
            changed=changed,
            fsck=_fsck(url),
            resident=server.resident,
            settled=settled,
            seconds=seconds,
            slowest={name: seconds for name, (seconds, _) in fuzz.slowest.items()},
            crashed=not server.is_alive,
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
    bad = False
    for store in plan.stores:
        with tempfile.TemporaryDirectory(prefix="fuzz") as name, _database(store, name) as url:
            print(f"{store}: seed {plan.seed}, {plan.requests} requests", flush=True)
            result = await fuzz_store(
                store, url, Path(name), seed=plan.seed, requests=plan.requests
            )
        bad |= _tell(result, plan)
    return int(bad)


def _tell(result: Result, plan: Plan) -> bool:
    codes = sorted({code for _, code in result.counts})
    for rpc in sorted({rpc for rpc, _ in result.counts}):
        row = {code: result.counts[rpc, code] for code in codes if result.counts[rpc, code]}
        print(f"  {rpc}: {row} slowest {result.slowest[rpc]:.1f}")
    print({code: sum(n for (_, c), n in result.counts.items() if c == code) for code in codes})
    print(
        "not planted:",
        [
            (k, a.code.name, a.message[:150])
            for k, a in result.planted.items()
            if a.code is not grpc.StatusCode.OK
        ],
    )
    print(
        f"{result.requests / result.seconds:.0f}/s; RSS settled {result.settled:.0f}, series",
        [round(x) for x in result.resident[:: max(1, len(result.resident) // 30)]],
        "max",
        max(result.resident),
    )
    print("changed", result.changed, "fsck", result.fsck, "crashed", result.crashed)
    seen = set()
    for complaint in result.complaints:
        key = complaint[:60] + complaint[-200:]
        if key not in seen:
            seen.add(key)
            print("LOG", complaint[-1500:])
    from tests.fuzz.rpcs import all_rpcs

    rpcs = {r.path: r for r in all_rpcs()}
    Path(plan.save).mkdir(parents=True, exist_ok=True)
    for i, f in enumerate(result.found):
        print(
            "FOUND", f.index, f.sent.path, f.problem, as_text(rpcs[f.sent.path], f.sent.data)[:300]
        )
        (Path(plan.save) / f"{result.store}-{i}.json").write_text(f.sent.to_json())
    return bool(result.found or result.complaints or result.changed or result.fsck)


@contextlib.contextmanager
def _database(store: str, folder: str) -> Iterator[str]:
    if store == "sqlite":
        yield f"sqlite:///{folder}/unmask.db"
        return
    with postgresql_server() as server:
        yield new_database(server)
