"""What one client may have at once, and how often it may ask."""

from __future__ import annotations

import pytest
from unmask_server.api.limits import (
    ClientCounts,
    ClientLimits,
    RateLimitedError,
    TooManyCallsError,
)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_calls_and_streams_are_counted_apart_and_by_client() -> None:
    counts = ClientCounts(ClientLimits(calls=2, streams=1))
    counts.enter("a", is_stream=False)
    counts.enter("a", is_stream=False)
    counts.enter("a", is_stream=True)
    for is_stream in (False, True):
        with pytest.raises(TooManyCallsError) as full:
            counts.enter("a", is_stream=is_stream)
        assert full.value.retry_seconds > 0
    counts.enter("b", is_stream=False)
    counts.leave("a", is_stream=False)
    counts.enter("a", is_stream=False)


def test_a_rate_holds_in_the_long_run_and_leaves_room_after_a_rest() -> None:
    clock = Clock()
    counts = ClientCounts(ClientLimits(rate=10.0, burst=3), clock)

    def is_taken() -> bool:
        try:
            counts.enter("a", is_stream=False)
        except RateLimitedError:
            return False
        counts.leave("a", is_stream=False)
        return True

    assert [is_taken() for _ in range(4)] == [True, True, True, False]
    clock.now += 0.1001
    assert [is_taken() for _ in range(2)] == [True, False]
    clock.now += 1000.0
    assert [is_taken() for _ in range(4)] == [True, True, True, False]
    # Somebody else has a bucket of their own.
    counts.enter("b", is_stream=True)


def test_whoever_waits_as_told_is_taken() -> None:
    clock = Clock()
    counts = ClientCounts(ClientLimits(rate=0.7, burst=1), clock)
    for _ in range(20):
        counts.enter("a", is_stream=False)
        with pytest.raises(RateLimitedError) as early:
            counts.enter("a", is_stream=False)
        clock.now += early.value.retry_seconds + 1e-9


def test_memory_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unmask_server.api.limits.REMEMBERED", 100)
    counts = ClientCounts(ClientLimits(calls=5, rate=1.0, burst=1))
    for number in range(1000):
        counts.enter(f"client {number}", is_stream=False)
        counts.leave(f"client {number}", is_stream=False)
    assert counts._buckets is not None
    assert len(counts._buckets._left) == 100
    assert not counts._calls
