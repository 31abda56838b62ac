"""Another server's change is known at once on PostgreSQL, and within the bound without notices."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace

import pytest
from sqlalchemy import Engine, text
from unmask_server.database import notices as module
from unmask_server.database.notices import Notices
from unmask_server.nodes.versions import MAX_AGE_SECONDS, TreeVersions
from unmask_server.tree import FINISH_STOP, NewRollout, TreeStore


class Listener:
    """The versions of one server over a database, and the notices that it heard."""

    def __init__(self, engine: Engine) -> None:
        self.store = TreeStore(engine)
        self.told: list[tuple[int, int]] = []
        self._moved = asyncio.Event()
        self.versions = TreeVersions(self.store)
        self.notices = Notices(engine, self._tell)
        self.versions.rely_on(self.notices)

    def _tell(self, tree_id: int, version: int) -> None:
        self.told.append((tree_id, version))
        self.versions.note_if_known(tree_id, version)
        self._moved.set()

    async def hear(self) -> None:
        """Wait for the next notice."""
        await self._moved.wait()
        self._moved.clear()

    async def is_complete(self) -> None:
        """Wait until the connection has answered."""
        while self.notices.complete_since is None:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.01)


@pytest.fixture
async def listener(
    postgresql_only: Engine, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Listener]:
    monkeypatch.setattr(module, "PING_SECONDS", 0.02)
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.02)
    found = Listener(postgresql_only)
    found.notices.start()
    await found.is_complete()
    yield found
    await found.notices.close()


def add(store: TreeStore, tree_id: int, number: int) -> int:
    rollout = NewRollout(number.to_bytes(16, "little"), (5, number, 2), 0, FINISH_STOP, {})
    return store.add_rollouts(tree_id, [rollout]).version


async def test_a_change_is_told_when_it_is_committed(
    listener: Listener, postgresql_only: Engine
) -> None:
    other = TreeStore(postgresql_only)
    tree_id = other.open_tree("p1", "q1").id
    assert await listener.versions.recent(tree_id) == 0
    version = await asyncio.to_thread(add, other, tree_id, 1)
    await listener.hear()
    assert listener.versions.current(tree_id) == version
    # Whatever writes a version: the database itself tells.
    await asyncio.to_thread(other.activate_verifier, tree_id, 1, lambda rollouts: [0.0])
    await listener.hear()
    assert listener.told == [(tree_id, 1), (tree_id, 2)]
    # Trees that nobody asks for here take no memory.
    unknown = other.open_tree("p2", "q2").id
    await asyncio.to_thread(add, other, unknown, 2)
    await listener.hear()
    assert listener.versions.current(unknown) is None


async def test_with_complete_notices_an_old_version_stands_unasked(
    listener: Listener, postgresql_only: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree_id = TreeStore(postgresql_only).open_tree("p1", "q1").id
    await listener.versions.latest(tree_id)
    now = asyncio.get_running_loop().time() + 10.0 * MAX_AGE_SECONDS
    clock = SimpleNamespace(monotonic=lambda: now)
    monkeypatch.setattr("unmask_server.nodes.versions.time", clock)
    # Too old by far, and the last answer of the connection is, too.
    assert listener.versions.current(tree_id) is None
    listener.notices.complete_until = now
    assert listener.versions.current(tree_id) == 0
    # What was read before the connection was there may have changed unheard.
    listener.notices.complete_since = now
    assert listener.versions.current(tree_id) is None


async def test_a_lost_connection_is_noticed_and_made_anew(
    listener: Listener, postgresql_only: Engine
) -> None:
    store = TreeStore(postgresql_only)
    tree_id = store.open_tree("p1", "q1").id
    await listener.versions.latest(tree_id)
    before = listener.notices.complete_since
    assert before is not None

    def kill() -> None:
        with postgresql_only.begin() as connection:
            connection.execute(
                text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query IN "
                     "('LISTEN unmask_tree', 'SELECT 1') AND pid <> pg_backend_pid()")
            )  # fmt: skip

    await asyncio.to_thread(kill)
    version = await asyncio.to_thread(add, store, tree_id, 1)
    while listener.notices.complete_since in (None, before):  # noqa: ASYNC110 - nothing tells
        await asyncio.sleep(0.01)
    assert listener.notices.complete_since > before
    # The change may have gone unheard, but nothing from before the new connection is relied on.
    assert await listener.versions.latest(tree_id) == version
    await asyncio.to_thread(add, store, tree_id, 2)
    while listener.versions.current(tree_id) != version + 1:  # noqa: ASYNC110 - or too old to tell
        await asyncio.sleep(0.01)


async def test_sqlite_has_no_notices(empty_url: str) -> None:
    from unmask_server.database.connect import open_database

    engine = open_database(empty_url)
    notices = Notices(engine, lambda tree_id, version: None)
    assert notices.is_possible == (engine.dialect.name == "postgresql")
    if not notices.is_possible:
        notices.start()
        assert notices.complete_since is None
    await notices.close()
    engine.dispose()
