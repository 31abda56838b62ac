"""Growths that share a tree sample one after the other, on both stores."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Engine, select, update
from unmask_server.database.connect import read, write
from unmask_server.database.schema import growth
from unmask_server.growth.control import GrowthControl
from unmask_server.growth.rows import LeaseLostError
from unmask_server.growth.spec import Growth
from unmask_server.growth.store import GrowthStore
from unmask_server.growth.turns import TurnStore

from tests.growth.making import LEASE, spec

ONE, TWO, OTHER = ("p1", "q1"), ("p1", "q2"), ("p2", "q1")


@pytest.fixture
def store(database: Engine) -> GrowthStore:
    return GrowthStore(database, lease_seconds=LEASE)


@pytest.fixture
def turns(database: Engine) -> TurnStore:
    return TurnStore(database, LEASE)


def start(
    store: GrowthStore, name: str, *subjects: tuple[str, str], owner: str | None = None
) -> Growth:
    created = store.create(name, spec(), subjects)
    held = store.claim(created.id, owner or f"server of {name}")
    assert held is not None
    return held


def test_growths_of_different_trees_do_not_wait(store: GrowthStore, turns: TurnStore) -> None:
    for held in (start(store, "a", ONE), start(store, "b", TWO), start(store, "c", OTHER)):
        assert turns.take(held).waits_for is None
        assert not turns.is_wanted(held)


def test_of_two_that_share_a_tree_the_second_waits_and_says_for_whom(
    store: GrowthStore, turns: TurnStore
) -> None:
    a, b = start(store, "a", ONE, TWO), start(store, "b", TWO, OTHER)
    assert turns.take(a).waits_for is None
    assert turns.take(a).waits_for is None
    assert not turns.is_wanted(a)
    assert turns.take(b).waits_for == a.id
    assert store.get(b.id).waits_for == a.id
    assert turns.is_wanted(a)
    turns.give_up(a, again=True)
    assert turns.take(a).waits_for == b.id
    assert turns.take(b).waits_for is None
    assert store.get(b.id).waits_for is None
    assert turns.take(a).waits_for == b.id
    turns.give_up(b, again=False)
    assert turns.take(a).waits_for is None


def test_one_of_many_trees_is_not_overtaken_for_ever(store: GrowthStore, turns: TurnStore) -> None:
    both = start(store, "both", ONE, TWO)
    left, right = start(store, "left", ONE), start(store, "right", TWO)
    assert turns.take(left).waits_for is None
    assert turns.take(right).waits_for is None
    assert turns.take(both).waits_for in (left.id, right.id)
    turns.give_up(left, again=True)
    # The tree of `left` is free now, but `both` came first.
    assert turns.take(left).waits_for == both.id
    turns.give_up(right, again=True)
    assert turns.take(right).waits_for == both.id
    assert turns.take(both).waits_for is None


@pytest.mark.parametrize("end", ["cancel", "pause"])
def test_what_a_client_stops_hands_over(
    database: Engine, store: GrowthStore, turns: TurnStore, end: str
) -> None:
    a, b = start(store, "a", ONE), start(store, "b", ONE)
    turns.take(a)
    assert turns.take(b).waits_for == a.id
    getattr(GrowthControl(database), end)(a.id)
    assert turns.take(b).waits_for is None
    with pytest.raises(LeaseLostError):
        turns.take(a)
    turns.give_up(a, again=True)
    assert turns.take(b).waits_for is None


def test_a_server_taken_for_dead_loses_its_turn(
    database: Engine, store: GrowthStore, turns: TurnStore
) -> None:
    a, b = start(store, "a", ONE), start(store, "b", ONE)
    turns.take(a)
    with write(database) as connection:
        connection.execute(update(growth).where(growth.c.id == a.id).values(lease_expires_at=1.0))
    assert turns.take(b).waits_for is None
    # It was only slow: it has to wait now.
    store.renew(str(a.owner), [a.id])
    assert turns.take(a).waits_for == b.id


def test_never_do_two_have_the_turn_whoever_asks_when(
    database: Engine, store: GrowthStore, turns: TurnStore
) -> None:
    trees = [[ONE], [ONE, TWO], [TWO, OTHER], [ONE, TWO, OTHER]]
    held = [start(store, str(i), *mine) for i, mine in enumerate(trees)]
    had: dict[int, int] = dict.fromkeys(range(len(held)), 0)

    def work(i: int) -> None:
        while had[i] < 3:
            if turns.take(held[i]).waits_for is None:
                with read(database) as connection:
                    at_it = connection.execute(select(growth.c.id).where(growth.c.has_turn))
                    theirs = {row.id for row in at_it}
                for j, other in enumerate(held):
                    shares = set(trees[i]) & set(trees[j])
                    assert i == j or not shares or other.id not in theirs
                had[i] += 1
                turns.give_up(held[i], again=had[i] < 3)

    with ThreadPoolExecutor(len(held)) as pool:
        list(pool.map(work, had))
    assert set(had.values()) == {3}
