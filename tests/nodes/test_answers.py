"""Kept answers: how old they may be, and what asking for them costs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import cast

import pytest
from unmask_server.api.answers import AnswerCache, Key
from unmask_server.nodes import versions
from unmask_server.nodes.versions import TreeVersions
from unmask_server.tree import TreeStore

TREE = 7
KEY: Key = ("GetNode", b"request")


class Trees:
    """Stands in for the store: one tree, whose version others may change."""

    def __init__(self) -> None:
        self.version = 1
        self.queries = 0

    def versions(self, tree_ids: Sequence[int]) -> dict[int, int]:
        self.queries += 1
        return dict.fromkeys(tree_ids, self.version)


class Clock:
    """The time that `TreeVersions` sees."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = time.monotonic()
        monkeypatch.setattr(versions, "time", SimpleNamespace(monotonic=lambda: self.now))

    def expire(self) -> None:
        self.now += versions.MAX_AGE_SECONDS + 0.001


@pytest.fixture
def trees() -> Trees:
    return Trees()


@pytest.fixture
def known(trees: Trees) -> TreeVersions:
    return TreeVersions(cast(TreeStore, trees))


@pytest.fixture
def answers(known: TreeVersions) -> AnswerCache:
    return AnswerCache(known, max_bytes=10_000)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def keep(answers: AnswerCache, clock: Clock, key: Key = KEY, *, latest: bool = False) -> None:
    answers.put(key, TREE, 1, b"answer", latest=latest, since=clock.now)


async def test_a_kept_answer_needs_no_query(
    answers: AnswerCache, trees: Trees, clock: Clock
) -> None:
    keep(answers, clock)
    assert answers.at_hand(KEY) == await answers.get(KEY) == b"answer"
    assert answers.at_hand(("GetNode", b"another")) is None
    assert trees.queries == 0


async def test_what_this_server_records_is_seen_at_once(
    answers: AnswerCache, known: TreeVersions, clock: Clock
) -> None:
    keep(answers, clock)
    known.note(TREE, 2)
    assert answers.at_hand(KEY) is None
    assert await answers.get(KEY) is None


async def test_what_another_server_records_is_seen_when_the_version_is_too_old(
    answers: AnswerCache, trees: Trees, clock: Clock
) -> None:
    keep(answers, clock)
    trees.version = 2
    clock.expire()
    assert answers.at_hand(KEY) is None
    assert await answers.get(KEY) is None


async def test_the_time_that_an_answer_took_counts_to_its_age(
    answers: AnswerCache, trees: Trees, clock: Clock
) -> None:
    since = clock.now
    clock.expire()
    answers.put(KEY, TREE, 1, b"answer", latest=False, since=since)
    trees.version = 2
    assert answers.at_hand(KEY) is None
    assert await answers.get(KEY) is None


async def test_the_newest_is_asked_for_every_time(
    answers: AnswerCache, trees: Trees, clock: Clock
) -> None:
    keep(answers, clock, latest=True)
    assert answers.at_hand(KEY) is None
    assert [await answers.get(KEY) for _ in range(2)] == [b"answer"] * 2
    assert trees.queries == 2
    trees.version = 2
    assert await answers.get(KEY) is None


async def test_many_who_ask_at_once_share_one_query(
    answers: AnswerCache, trees: Trees, clock: Clock
) -> None:
    keep(answers, clock)
    clock.expire()
    assert await asyncio.gather(*(answers.get(KEY) for _ in range(20))) == [b"answer"] * 20
    assert trees.queries == 1


async def test_one_who_goes_away_does_not_take_the_query_from_the_others(
    answers: AnswerCache, clock: Clock
) -> None:
    keep(answers, clock)
    clock.expire()
    first, second = (asyncio.ensure_future(answers.get(KEY)) for _ in range(2))
    await asyncio.sleep(0)  # both have asked
    first.cancel()
    assert await second == b"answer"
    assert first.cancelled()


async def test_the_longest_unused_answer_goes_first(answers: AnswerCache, clock: Clock) -> None:
    keys: list[Key] = [("GetNode", bytes([i]) * 3000) for i in range(4)]
    for key in keys[:3]:
        keep(answers, clock, key)
    assert answers.at_hand(keys[0]) is not None
    keep(answers, clock, keys[3])
    assert [answers.at_hand(key) is not None for key in keys] == [True, False, True, True]
