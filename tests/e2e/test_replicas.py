"""Two servers over one database: what both are asked for is sampled once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from sqlalchemy import Engine, event, func, select, update
from unmask.v1 import growth_pb2
from unmask_server.app import build
from unmask_server.config import Settings
from unmask_server.database.connect import open_database, read, write
from unmask_server.database.migrate import migrate
from unmask_server.database.schema import growth, rollout, tree
from unmask_server.growth import rounds
from unmask_server.serve import running
from unmask_server.tree import check_tree

from tests.e2e.conftest import Stubs, World, fill
from tests.e2e.scripted_engine import ScriptedEngine
from tests.e2e.test_main_job import growth_of, prefix

GOAL = 600


@dataclass
class Replica(World):
    """A server and its engine."""

    engine: ScriptedEngine = None  # type: ignore[assignment]


@asynccontextmanager
async def replica(
    url: str, folder: Path, engine: ScriptedEngine | None = None, **options: Any
) -> AsyncIterator[Replica]:
    """One more server over the database."""
    folder.mkdir()
    settings = Settings(
        database=url, listen=[f"unix:{folder / 'socket'}"], grace_seconds=0.2, **options
    )
    engine = engine or ScriptedEngine()
    app = build(settings, engine.open)
    async with running(settings, app) as bound, grpc.aio.insecure_channel(bound[0]) as channel:
        yield Replica(Stubs(channel), bound[0], app, settings, engine=engine)


@pytest.fixture
async def pair(
    empty_url: str, tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Replica, Replica]]:
    """Two servers, filled; a turn is over as soon as another growth waits."""
    monkeypatch.setattr(rounds, "TURN_SECONDS", 0.0)
    monkeypatch.setattr(rounds, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(rounds, "ASK_SECONDS", 0.02)
    migrate(empty_url)
    async with AsyncExitStack() as stack:
        # With such leases nobody is taken for dead, nor renews a lease, unless a test says so.
        a, b = [
            await stack.enter_async_context(
                replica(empty_url, tmp_path / name, lease_seconds=600.0)
            )
            for name in ("a", "b")
        ]
        await fill(a, models)
        yield a, b


@pytest.fixture
def stored(pair: tuple[Replica, Replica]) -> AsyncIterator[Engine]:
    """The database by itself."""
    engine = open_database(pair[0].settings.database)
    yield engine  # type: ignore[misc]
    engine.dispose()


def question(name: str) -> growth_pb2.GrowthTarget:
    return growth_pb2.GrowthTarget(
        question=growth_pb2.QuestionTarget(policy="student", question=name)
    )


def asked(request_id: str, *names: str, goal: int = GOAL, budget: int = 10_000) -> Any:
    return growth_of(
        *map(question, names),
        request_id=request_id,
        rollouts_per_node=goal,
        budget=growth_pb2.Budget(rollouts=budget),
    )


async def start(server: World, request: Any) -> str:
    return (await server.stubs.growth.StartGrowth(request)).growth.id


async def until(
    server: World, growth_id: str, told: Callable[[growth_pb2.Growth], bool]
) -> growth_pb2.Growth:
    """Watch until the growth is as wanted."""
    watch = server.stubs.growth.WatchGrowth(growth_pb2.WatchGrowthRequest(growth=growth_id))
    async for progress in watch:
        if told(progress.growth):
            # So many streams a client may have open.
            watch.cancel()
            return progress.growth
    raise AssertionError("it ended before")


async def ended(server: World, growth_id: str) -> growth_pb2.Growth:
    last = await until(server, growth_id, lambda g: g.state in (3, 4, 5))
    assert last.state == growth_pb2.GROWTH_STATE_SUCCEEDED, last.error
    return last


def rollouts(database: Engine) -> int:
    with read(database) as connection:
        return connection.execute(select(func.count()).select_from(rollout)).scalar_one()


def check(database: Engine, *servers: Replica) -> None:
    """What is stored is what the engines answered and the growths were charged, once."""
    with read(database) as connection:
        charged = connection.execute(select(func.sum(growth.c.rollouts_sampled))).scalar_one()
        trees = connection.execute(select(tree.c.id)).scalars().all()
        # Some need no engine: those that are forced up to their end.
        own = connection.execute(
            select(func.count()).where(rollout.c.depth > rollout.c.forced_depth)
        )
        sampled = own.scalar_one()
    assert charged == rollouts(database)
    assert sampled == sum(server.engine.sampled for server in servers)
    for tree_id in trees:
        assert check_tree(database, tree_id) == []


async def test_what_two_want_at_once_is_sampled_once_and_both_see_it(
    pair: tuple[Replica, Replica], stored: Engine
) -> None:
    a, b = pair
    a.engine.allow(GOAL // 2)
    first = await start(a, asked("a", "one"))
    await until(a, first, lambda g: g.rollouts_sampled > 0)
    second = await start(b, asked("b", "one"))
    waiting = await until(b, second, lambda g: g.rollouts_counted > 0)
    assert waiting.waits_for == first
    assert waiting.rollouts_sampled == 0
    assert await until(b, second, lambda g: g.rollouts_counted >= GOAL // 2)
    a.engine.allow(None)
    for server, growth_id in ((a, first), (b, second)):
        last = await ended(server, growth_id)
        assert last.rollouts_counted == GOAL
        assert last.waits_for == ""
    assert rollouts(stored) == GOAL
    check(stored, a, b)


async def test_overlapping_targets_of_many_growths_are_sampled_once(
    pair: tuple[Replica, Replica], stored: Engine
) -> None:
    wanted = [("one",), ("two",), ("one", "two"), ("two", "one"), ("one",)]
    started = []
    for i, names in enumerate(wanted):
        server = pair[i % 2]
        started.append((server, await start(server, asked(str(i), *names))))
    for server, growth_id in started:
        await ended(server, growth_id)
    assert rollouts(stored) == 2 * GOAL
    check(stored, *pair)


async def test_adaptive_growths_of_one_node_reach_their_goal_together(
    pair: tuple[Replica, Replica], stored: Engine
) -> None:
    a, b = pair
    node = growth_pb2.GrowthTarget(node=prefix())
    wanted = {"allocation": growth_pb2.ALLOCATION_ADAPTIVE, "rollouts_per_node": 200}
    started = [
        (server, await start(server, growth_of(node, request_id=name, **wanted)))
        for server, name in ((a, "a"), (b, "b"), (a, "c"))
    ]
    counted = {(await ended(server, growth_id)).rollouts_counted for server, growth_id in started}
    # All judge by what the tree holds: the goal, or less where there is nothing left to learn.
    assert counted == {rollouts(stored)}
    assert max(counted) <= 200
    check(stored, a, b)


async def test_cancelling_the_one_hands_over_to_the_other(
    pair: tuple[Replica, Replica], stored: Engine
) -> None:
    a, b = pair
    a.engine.allow(100)
    first = await start(a, asked("a", "one"))
    await until(a, first, lambda g: g.rollouts_sampled > 0)
    second = await start(b, asked("b", "one"))
    await until(b, second, lambda g: g.waits_for == first)
    # By the other server.
    cancelled = await b.stubs.growth.CancelGrowth(growth_pb2.CancelGrowthRequest(growth=first))
    assert cancelled.growth.state == growth_pb2.GROWTH_STATE_CANCELLED
    last = await ended(b, second)
    assert last.rollouts_counted == GOAL
    a.engine.allow(None)
    await asyncio.wait([asyncio.ensure_future(settled(a))], timeout=30)
    check(stored, a, b)


async def settled(server: Replica) -> None:
    """Wait until the server works on nothing."""
    while server.app.runner.at_work:  # noqa: ASYNC110 - a test's own wait
        await asyncio.sleep(0.01)


async def test_budgets_are_each_growths_own(pair: tuple[Replica, Replica], stored: Engine) -> None:
    a, b = pair
    first = await start(a, asked("a", "one", budget=150))
    second = await start(b, asked("b", "one"))
    one, two = await ended(a, first), await ended(b, second)
    assert one.rollouts_sampled <= 150
    assert two.rollouts_counted == GOAL
    assert rollouts(stored) == GOAL == one.rollouts_sampled + two.rollouts_sampled
    check(stored, a, b)


async def test_after_a_take_over_all_servers_together_keep_to_the_budget(
    pair: tuple[Replica, Replica], stored: Engine
) -> None:
    a, b = pair
    a.engine.allow(200)
    request = asked("a", "one", goal=0, budget=500)
    growth_id = await start(a, request)
    await until(a, growth_id, lambda g: g.rollouts_sampled >= 200)
    # The first server hangs: its lease is over, but what it has under way will still come.
    with write(stored) as connection:
        connection.execute(update(growth).values(lease_expires_at=1.0))
    await start(b, request)
    last = await ended(b, growth_id)
    assert last.rollouts_sampled == 500
    a.engine.allow(None)
    await asyncio.wait([asyncio.ensure_future(settled(a))], timeout=30)
    after = await b.stubs.growth.GetGrowth(growth_pb2.GetGrowthRequest(growth=growth_id))
    assert 500 <= after.growth.rollouts_sampled <= 500 + 300
    check(stored, a, b)


async def test_a_batch_is_acknowledged_only_when_it_is_committed(
    pair: tuple[Replica, Replica], stored: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, _ = pair
    monkeypatch.setattr("unmask_server.growth.runner.FIRST_PAUSE_SECONDS", 0.01)
    seen: list[int] = []
    failed: list[int] = []

    def fail(connection: Any) -> None:
        # Whatever the growth's row says inside of the transaction is not so yet.
        count = select(func.count()).select_from(rollout)
        if len(failed) < 2 and connection.execute(count).scalar_one() > rollouts(stored):
            failed.append(connection.execute(select(growth.c.rollouts_sampled)).scalar_one())
            raise TimeoutError("the disk is full")

    event.listen(a.app.database, "commit", fail)
    watch = growth_pb2.WatchGrowthRequest(growth=await start(a, asked("a", "one")))
    async for progress in a.stubs.growth.WatchGrowth(watch):
        assert progress.growth.rollouts_sampled <= rollouts(stored)
        seen.append(progress.growth.rollouts_sampled)
    assert len(failed) == 2
    assert all(failed)
    assert seen[-1] == rollouts(stored) == GOAL
