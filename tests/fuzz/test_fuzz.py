"""The short version of `make fuzz`: a few hundred requests and every raw attack, on each store."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from pathlib import Path

import grpc
import pytest
from unmask_server.database.migrate import migrate

from tests.fuzz import wire
from tests.fuzz.campaign import WORKERS, Plan, bound_of, fuzz_store
from tests.fuzz.frames import ATTACKS
from tests.fuzz.report import tell
from tests.fuzz.rpcs import all_rpcs
from tests.fuzz.seeds import SEEDS
from tests.fuzz.server import watched
from tests.stores import new_database

SEED = int(os.environ.get("UNMASK_FUZZ_SEED", "8"))
REQUESTS = 600


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_a_server_survives_fuzzed_requests_and_frames(
    request: pytest.FixtureRequest, tmp_path: Path, store: str
) -> None:
    if store == "sqlite":
        url = f"sqlite:///{tmp_path}/unmask.db"
    else:
        url = new_database(request.getfixturevalue("postgresql_url"))
    plan = Plan(
        seed=SEED,
        requests=REQUESTS,
        connections=len(ATTACKS),
        minutes=5.0,
        stores=(store,),
        save=tmp_path,
    )
    result = await fuzz_store(store, url, tmp_path, plan)
    tell(result, {rpc.path: rpc for rpc in all_rpcs()}, tmp_path)
    assert result.violations == []
    answered = Counter(name for (name, code), n in result.counts.items() if code == "OK" and n)
    # A stream that goes on when its time is over counts as none that was answered.
    endless = "GrowthService/WatchGrowth"
    ours = [rpc.name for rpc in all_rpcs() if rpc.is_ours and rpc.name != endless]
    never = [name for name in ours if not answered[name]]
    assert never == [], "valid requests of these are refused: bring tests/fuzz/seeds.py up to date"


@pytest.mark.slow
async def test_many_requests_of_half_a_million_parts_take_no_more_memory_than_their_bytes(
    tmp_path: Path,
) -> None:
    url = f"sqlite:///{tmp_path}/unmask.db"
    migrate(url)
    many = (wire.tag(1, 2) + b"\0") * 500_000
    async with watched(url, tmp_path / "server") as server:
        call = server.channel.unary_unary("/unmask.v1.CatalogService/RegisterQuestions")

        async def send() -> grpc.StatusCode:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(many)
            return caught.value.code()

        server.measure()
        before = server.resident[-1]
        for _ in range(4):
            codes = await asyncio.gather(*(send() for _ in range(WORKERS)))
            assert set(codes) == {grpc.StatusCode.INVALID_ARGUMENT}
        # One of them takes 27 MiB once it is parsed: all of them 860, if all were there at once.
        assert max(server.resident) < bound_of(before)


def test_there_is_a_seed_for_every_rpc() -> None:
    methods = {rpc.path.rpartition("/")[2] for rpc in all_rpcs() if rpc.is_ours}
    assert methods - {name for name, _ in SEEDS} == set()


def test_broken_bytes_are_of_every_kind() -> None:
    rpc = next(rpc for rpc in all_rpcs() if rpc.path.endswith("/RegisterPolicy"))
    rng = random.Random(0)
    made = {wire.broken(rng, b"\n\x01a", b"\x12\x01b", rpc.request) for _ in range(300)}
    assert len(made) > 100
    read = sum(_reads(rpc.new_request(), data) for data in made)
    assert 0 < read < len(made)


def _reads(message: object, data: bytes) -> bool:
    try:
        message.ParseFromString(data)  # type: ignore[attr-defined]
    except Exception:
        return False
    return True
