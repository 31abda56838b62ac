"""A server killed in the middle of its work loses nothing acknowledged and counts nothing twice."""

from __future__ import annotations

import signal
import subprocess
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select
from unmask.v1 import growth_pb2
from unmask_server.database.connect import open_database, read
from unmask_server.database.schema import growth, rollout, tree
from unmask_server.tree import check_tree

from tests.e2e.conftest import Stubs, World, fill
from tests.e2e.processes import server_process
from tests.e2e.test_main_job import growth_of, prefix

BUDGET = 2000


ENDLESS = growth_pb2.Precision(half_width=0.001, flat_norm=0.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("by", "options"),
    [
        ("another", {"allocation": growth_pb2.ALLOCATION_POLICY}),
        ("its restart", {"allocation": growth_pb2.ALLOCATION_ADAPTIVE, "precision": ENDLESS}),
    ],
)
async def test_a_killed_servers_growth_is_taken_over_when_its_lease_is_over(
    empty_url: str,
    tmp_path: Path,
    models: Path,
    monkeypatch: pytest.MonkeyPatch,
    by: str,
    options: dict[str, Any],
) -> None:
    monkeypatch.setenv("UNMASK_LEASE_SECONDS", "6")
    monkeypatch.setenv("UNMASK_THREADS", "1")
    request = growth_of(
        growth_pb2.GrowthTarget(node=prefix()),
        rollouts_per_node=0,
        budget=growth_pb2.Budget(rollouts=BUDGET),
        **options,
    )
    acknowledged = 0
    async with AsyncExitStack() as stack:

        async def server(name: str) -> tuple[Stubs, subprocess.Popen[bytes]]:
            return await stack.enter_async_context(server_process(empty_url, tmp_path / name))

        stubs, process = await server("a")
        await fill(World(stubs, "", None, None), models)  # type: ignore[arg-type]
        other = (await server("b"))[0] if by == "another" else None
        started = await stubs.growth.StartGrowth(request)
        watch = growth_pb2.WatchGrowthRequest(growth=started.growth.id)
        async for progress in stubs.growth.WatchGrowth(watch):
            acknowledged = progress.growth.rollouts_sampled
            if acknowledged:
                break
        process.send_signal(signal.SIGKILL)
        process.wait()
        database = open_database(empty_url)
        with read(database) as connection:
            # In one statement: another server may take over at any moment.
            kept = select(func.count()).select_from(rollout).scalar_subquery()
            stored, charged = connection.execute(select(kept, growth.c.rollouts_sampled)).one()
        assert acknowledged <= stored == charged < BUDGET
        other = other or (await server("c"))[0]
        async for progress in other.growth.WatchGrowth(watch):
            last = progress.growth
        assert last.state == growth_pb2.GROWTH_STATE_SUCCEEDED
        assert last.rollouts_sampled == BUDGET
    with read(database) as connection:
        assert connection.execute(select(func.count()).select_from(rollout)).scalar_one() == BUDGET
        assert connection.execute(select(growth.c.attempt)).scalar_one() >= 2
        trees = connection.execute(select(tree.c.id)).scalars().all()
    for tree_id in trees:
        assert check_tree(database, tree_id) == []
    database.dispose()
