"""Distributions: kept exactly, and what is known of one only ever grows."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine
from unmask_server.tree import DiffersError, DistributionStore, StoredDistribution, merge

from tests.tree.making import uid

TRUE_LOGPROBS = np.log(np.arange(64, 0, -1, dtype=np.float32) / 2080)


def part(*ids: int, top_k: int | None = None, complete: bool = False) -> StoredDistribution:
    """An extract of one fixed distribution over 64 ids, whose likeliest is id 0."""
    chosen = np.array(ids, dtype=np.int32)
    k = len(ids) if top_k is None else top_k
    return StoredDistribution(chosen, TRUE_LOGPROBS[chosen], k, complete)


def assert_same(left: StoredDistribution, right: StoredDistribution) -> None:
    np.testing.assert_array_equal(left.ids, right.ids)
    np.testing.assert_array_equal(left.logprobs, right.logprobs)
    assert (left.top_k, left.complete) == (right.top_k, right.complete)


def test_what_is_put_comes_back_exactly(database: Engine) -> None:
    store = DistributionStore(database)
    entry = part(0, 1, 2, 60, top_k=3)
    store.put({uid(1): entry, uid(2): part()})
    found = store.get([uid(1), uid(2), uid(3), uid(1)])
    assert found.keys() == {uid(1), uid(2)}
    assert_same(found[uid(1)], entry)
    assert found[uid(1)].ids.dtype == np.int32
    assert found[uid(1)].logprobs.dtype == np.float32


def test_nothing_asked_for_nothing_found(database: Engine) -> None:
    store = DistributionStore(database)
    store.put({})
    assert store.get([]) == {}


def test_many_keys_in_one_call(database: Engine) -> None:
    store = DistributionStore(database)
    entries = {uid(n): part(0, 1, n % 62 + 2, top_k=2) for n in range(3000)}
    store.put(entries)
    assert store.get(entries).keys() == entries.keys()


def test_a_longer_one_replaces_a_shorter_one_and_not_the_other_way(database: Engine) -> None:
    store = DistributionStore(database)
    store.put({uid(1): part(0, 1)})
    store.put({uid(1): part(0, 1, 2, 3)})
    store.put({uid(1): part(0)})
    assert_same(store.get([uid(1)])[uid(1)], part(0, 1, 2, 3))


def test_extra_ids_of_both_are_kept(database: Engine) -> None:
    store = DistributionStore(database)
    store.put({uid(1): part(0, 1, 40, 50, top_k=2)})
    store.put({uid(1): part(0, 1, 2, 60, top_k=3)})
    assert_same(store.get([uid(1)])[uid(1)], part(0, 1, 2, 60, 40, 50, top_k=3))


@given(st.sets(st.integers(0, 63)), st.sets(st.integers(0, 63)), st.integers(0, 9), st.data())
def test_merging_loses_no_id_and_keeps_the_likeliest_first(
    first: set[int], second: set[int], k: int, data: st.DataObject
) -> None:
    other_k = data.draw(st.integers(0, 9))
    one = part(*range(k), *sorted(first - set(range(k))), top_k=k)
    two = part(*range(other_k), *sorted(second - set(range(other_k))), top_k=other_k)
    merged = merge(one, two)
    assert set(merged.ids.tolist()) == set(one.ids.tolist()) | set(two.ids.tolist())
    assert len(set(merged.ids.tolist())) == len(merged.ids)
    assert merged.top_k == max(k, other_k)
    assert merged.ids[: merged.top_k].tolist() == list(range(merged.top_k))
    np.testing.assert_array_equal(merged.logprobs, TRUE_LOGPROBS[merged.ids])


def test_a_complete_one_stays_complete(database: Engine) -> None:
    store = DistributionStore(database)
    store.put({uid(1): part(*range(64), complete=True)})
    store.put({uid(1): part(0, 1, 2)})
    assert_same(store.get([uid(1)])[uid(1)], part(*range(64), complete=True))


def test_at_the_same_time_nobody_loses_an_id(database: Engine) -> None:
    store = DistributionStore(database)

    def put(writer: int) -> None:
        order = range(40) if writer % 2 else range(39, -1, -1)
        store.put({uid(n): part(0, 1, 10 + writer, top_k=2) for n in order})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, range(8)))
    for found in store.get(map(uid, range(40))).values():
        assert set(found.ids.tolist()) == {0, 1, *range(10, 18)}


@pytest.mark.parametrize(
    ("key", "entry", "message"),
    [
        (b"short", part(0), "16 bytes, not 5"),
        (uid(2), part(0, 0), "names an id twice"),
        (uid(2), part(0, top_k=2), "at least top_k"),
        (
            uid(2),
            StoredDistribution(np.array([1], np.int32), np.array([-np.inf], np.float32), 1, False),
            "finite",
        ),
        (
            uid(2),
            StoredDistribution(np.array([1, 2], np.int32), np.array([0], np.float32), 1, False),
            "as many ids",
        ),
    ],
)
def test_what_is_malformed_is_refused_with_its_whole_call(
    database: Engine, key: bytes, entry: StoredDistribution, message: str
) -> None:
    store = DistributionStore(database)
    with pytest.raises(ValueError, match=message):
        store.put({uid(1): part(0), key: entry})
    assert store.get([uid(1)]) == {}


def test_what_is_stated_once_never_changes(database: Engine) -> None:
    store = DistributionStore(database)
    assert store.put_once({}) == set()
    assert store.put_once({uid(1): part(0, 1), uid(2): part(5, 6)}) == {uid(1), uid(2)}
    assert store.put_once({uid(1): part(0, 1), uid(3): part(7)}) == {uid(3)}
    for other in (part(0, 1, 2), part(0, 2), part(0)):
        with pytest.raises(DiffersError) as caught:
            store.put_once({uid(0): part(0), uid(1): other, uid(4): part(0)})
        assert caught.value.key == uid(1)
    # Of what was refused nothing was kept.
    found = store.get([uid(n) for n in range(5)])
    assert found.keys() == {uid(1), uid(2), uid(3)}
    assert_same(found[uid(1)], part(0, 1))


def test_of_two_who_state_different_things_at_once_one_is_refused(database: Engine) -> None:
    store = DistributionStore(database)
    keys = [uid(n) for n in range(20)]

    def state(token: int) -> int:
        try:
            return len(store.put_once({key: part(token) for key in keys}))
        except DiffersError:
            return -1

    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(state, range(4)))
    assert sorted(outcomes) == [-1, -1, -1, len(keys)]
    assert {int(one.ids[0]) for one in store.get(keys).values()} == {outcomes.index(len(keys))}
