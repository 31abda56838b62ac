"""Servers killed at random moments, many at once, and with wrong clocks."""

from __future__ import annotations

import asyncio
import random

import pytest
from unmask.v1 import growth_pb2
from unmask_server.growth.flushing import FLUSH_ROLLOUTS

from tests.chaos.audit import audit
from tests.chaos.conftest import MakeTeam
from tests.chaos.report import Row, count
from tests.chaos.team import ENDED, Server, Team, has_more_than

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3600)]

KILLS = count("KILLS", 6)
ROUNDS = count("ROUNDS", 2)
BATCH = FLUSH_ROLLOUTS + 2
"""Rollouts that one server has in flight here: a growth's, and two trajectories."""


async def test_kill_9_at_random_moments_of_growth(
    store: str, make_team: MakeTeam, rows: list[Row]
) -> None:
    """The growth goes on by its request_id; a kill costs at most one batch."""
    team = make_team(store, lease=1.0)
    rng = random.Random(store)
    budget = 150 * KILLS
    server = await team.start()
    await team.fill(server)
    async with team.sampling(lambda: server):
        for _ in range(KILLS):
            growth = await team.grow(server, "killed", budget)
            # Half of the kills come after a batch of this server's, half at any moment.
            if growth.state not in ENDED and rng.random() < 0.5:
                moved = has_more_than(growth.rollouts_sampled)
                await asyncio.wait_for(team.watch(server, growth.id, moved), 60)
            await asyncio.sleep(rng.uniform(0.0, 0.5))
            server.kill()
            server = await team.start()
        await team.finish(server, "killed", budget)
    await server.close()
    account = audit(team, allowed_lost=BATCH * KILLS)
    rows.append(Row.of("kill -9 during growth", store, KILLS, account))
    assert account.violations == []
    assert account.uncharged == 0


@pytest.mark.parametrize(("where", "servers", "clients"), [("postgresql", 4, 8), ("sqlite", 2, 8)])
async def test_many_replicas_and_clients_on_one_question(
    make_team: MakeTeam, rows: list[Row], where: str, servers: int, clients: int
) -> None:
    """Retries, the same request at two servers, cancelled calls and cancelled growths."""
    team = make_team(where, lease=5.0)
    replicas = [await team.start() for _ in range(servers)]
    await team.fill(replicas[0])
    async with asyncio.TaskGroup() as group:
        for number in range(clients):
            group.create_task(_client(team, replicas, random.Random(number)))
    for name in {f"shared {i}" for i in range(4)} & team.wanted.keys():
        await _ended(team, random.choice(replicas), name)
    for replica in replicas:
        await replica.close()
    account = audit(team)
    name = f"{servers} replicas, {clients} clients, one question"
    rows.append(Row.of(name, where, 0, account))
    assert account.violations == []
    assert account.uncharged == 0


async def _client(team: Team, replicas: list[Server], rng: random.Random) -> None:
    for _ in range(ROUNDS):
        name = f"shared {rng.randrange(4)}"
        asked = rng.sample(replicas, 2)
        growth, _ = await asyncio.gather(*(team.grow(s, name, 400) for s in asked))
        patience = rng.uniform(0.0, 0.3)
        try:
            async with asyncio.timeout(patience):
                await team.watch(rng.choice(replicas), growth.id, lambda g: False)
        except TimeoutError:
            if rng.random() < 0.2:
                cancel = growth_pb2.CancelGrowthRequest(growth=growth.id)
                await rng.choice(replicas).stubs.growth.CancelGrowth(cancel)
        # The same trajectories, asked for at two servers at once; one of the calls is given up.
        seed = rng.randrange(1000)
        calls = [asyncio.ensure_future(team.sample(s, "one", seed=seed)) for s in asked]
        if rng.random() < 0.5:
            await asyncio.sleep(rng.uniform(0.0, 0.05))
            calls[0].cancel()
        await asyncio.gather(*calls, return_exceptions=True)


async def _ended(team: Team, server: Server, name: str) -> None:
    growth = await team.grow(server, name, 400)
    last = await team.watch(server, growth.id, lambda g: False)
    assert last.state in (growth_pb2.GROWTH_STATE_SUCCEEDED, growth_pb2.GROWTH_STATE_CANCELLED)


async def test_clocks_that_are_wrong(store: str, make_team: MakeTeam, rows: list[Row]) -> None:
    """A replica whose clock is hours off may take work over too early or too late; no more."""
    team = make_team(store, lease=1.0)
    replicas = [await team.start(clock=hours * 3600.0) for hours in (0, 5, -5)]
    await team.fill(replicas[0])
    for number in range(ROUNDS):
        await asyncio.gather(
            *(team.finish(replica, f"clock {number}", 900) for replica in replicas),
            *(team.sample(replica) for replica in replicas),
        )
    for replica in replicas:
        await replica.close()
    account = audit(team)
    rows.append(Row.of("clocks 5 h fast and slow", store, ROUNDS, account))
    assert account.violations == []
    assert account.uncharged == 0
