"""A server killed in the middle of its work loses nothing acknowledged and counts nothing twice."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select
from unmask.v1 import growth_pb2
from unmask_server.database.connect import open_database, read
from unmask_server.database.schema import growth, rollout, tree
from unmask_server.tree import check_tree

from tests.e2e.conftest import World, fill
from tests.e2e.processes import server_process
from tests.e2e.test_main_job import growth_of, prefix

BUDGET = 3000


ENDLESS = growth_pb2.Precision(half_width=0.001, flat_norm=0.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"allocation": growth_pb2.ALLOCATION_POLICY},
        {"allocation": growth_pb2.ALLOCATION_ADAPTIVE, "precision": ENDLESS},
    ],
)
async def test_a_killed_servers_growth_is_finished_by_the_next_one(
    tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    url = f"sqlite:///{tmp_path / 'unmask.db'}"
    request = growth_of(
        growth_pb2.GrowthTarget(node=prefix()),
        rollouts_per_node=0,
        budget=growth_pb2.Budget(rollouts=BUDGET),
        **options,
    )
    acknowledged = 0
    async with server_process(url, tmp_path / "a") as (stubs, process):
        await fill(World(stubs, "", None, None), models)  # type: ignore[arg-type]
        started = await stubs.growth.StartGrowth(request)
        watch = growth_pb2.WatchGrowthRequest(growth=started.growth.id)
        async for progress in stubs.growth.WatchGrowth(watch):
            acknowledged = progress.growth.rollouts_sampled
            if acknowledged:
                break
        process.send_signal(signal.SIGKILL)
        process.wait()
    database = open_database(url)
    with read(database) as connection:
        kept = connection.execute(select(func.count()).select_from(rollout)).scalar_one()
        charged = connection.execute(select(growth.c.rollouts_sampled)).scalar_one()
    assert acknowledged <= kept == charged < BUDGET
    # What the dead server left would be taken over when its lease runs out: let it have run out.
    from sqlalchemy import update
    from unmask_server.database.connect import write

    with write(database) as connection:
        connection.execute(update(growth).values(lease_expires_at=time.time() - 1))
    async with server_process(url, tmp_path / "b") as (stubs, _):
        async for progress in stubs.growth.WatchGrowth(watch):
            last = progress.growth
        assert last.state == growth_pb2.GROWTH_STATE_SUCCEEDED
        assert last.rollouts_sampled == BUDGET
    with read(database) as connection:
        assert connection.execute(select(func.count()).select_from(rollout)).scalar_one() == BUDGET
        trees = connection.execute(select(tree.c.id)).scalars().all()
    for tree_id in trees:
        assert check_tree(database, tree_id) == []
