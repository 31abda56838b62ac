"""Pausing, resuming, extending and listing growths, by any server of the database."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from sqlalchemy import Engine
from unmask.v1 import growth_pb2
from unmask_server.growth.storing import Sampled, Storing

from tests.e2e.test_main_job import growth_of, prefix
from tests.e2e.test_replicas import (
    Replica,
    asked,
    check,
    ended,
    pair,
    rollouts,
    settled,
    start,
    stored,
    until,
)

__all__ = ["pair", "stored"]


async def test_a_growth_is_paused_and_resumed_by_another_server(
    pair: tuple[Replica, Replica], stored: Engine
) -> None:
    a, b = pair
    a.engine.allow(100)
    growth_id = await start(a, asked("a", "one"))
    await until(a, growth_id, lambda g: g.rollouts_sampled >= 100)
    paused = await b.stubs.growth.PauseGrowth(growth_pb2.PauseGrowthRequest(growth=growth_id))
    assert paused.growth.state == growth_pb2.GROWTH_STATE_PAUSED
    # Starting it again does not wake it.
    await start(b, asked("a", "one"))
    a.engine.allow(None)
    await settled(a)
    assert not b.app.runner.at_work
    listed = await a.stubs.growth.ListGrowths(
        growth_pb2.ListGrowthsRequest(
            states=[growth_pb2.GROWTH_STATE_PAUSED], policy="student", question="one"
        )
    )
    assert [growth.id for growth in listed.growths] == [growth_id]
    resume = growth_pb2.ResumeGrowthRequest(growth=growth_id)
    assert (await b.stubs.growth.ResumeGrowth(resume)).growth.state != paused.growth.state
    await ended(b, growth_id)
    assert rollouts(stored) == 600
    check(stored, a, b)


async def test_pausing_on_its_own_server_keeps_what_was_sampled(
    pair: tuple[Replica, Replica], stored: Engine
) -> None:
    a, b = pair
    a.engine.allow(100)
    growth_id = await start(a, asked("a", "one"))
    while a.engine.sampled < 100:
        await until(a, growth_id, lambda g: True)
    paused = await a.stubs.growth.PauseGrowth(growth_pb2.PauseGrowthRequest(growth=growth_id))
    assert paused.growth.rollouts_sampled == 100 == rollouts(stored)
    assert not a.app.runner.at_work
    cancelled = await b.stubs.growth.CancelGrowth(growth_pb2.CancelGrowthRequest(growth=growth_id))
    assert cancelled.growth.state == growth_pb2.GROWTH_STATE_CANCELLED
    check(stored, a, b)


async def test_cancelling_twice_loses_nothing_that_was_sampled(
    pair: tuple[Replica, Replica], stored: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = pair
    begun, may, store = threading.Event(), threading.Event(), Storing.store

    def store_when_it_may(storing: Storing, batch: Sequence[Sampled]) -> None:
        begun.set()
        assert may.wait(60)
        store(storing, batch)

    monkeypatch.setattr(Storing, "store", store_when_it_may)
    a.engine.allow(100)
    growth_id = await start(a, asked("a", "one"))
    async with asyncio.timeout(60):
        while not begun.is_set():
            await until(a, growth_id, lambda _: True)
        # While one batch is being stored, there are some more.
        a.engine.allow(100)
        while a.engine.sampled < 200:
            await until(a, growth_id, lambda _: True)
        work, cancels = a.app.runner._tasks[growth_id], []
        for times in (1, 2):
            request = growth_pb2.CancelGrowthRequest(growth=growth_id)
            cancels.append(asyncio.ensure_future(a.stubs.growth.CancelGrowth(request)))
            while work.cancelling() < times:
                await until(a, growth_id, lambda _: True)
        may.set()
        answers = await asyncio.gather(*cancels)
    assert [answer.growth.rollouts_sampled for answer in answers] == [200, 200]
    assert rollouts(stored) == 200
    check(stored, a, b)


async def test_a_running_growth_is_extended_by_another_server(
    pair: tuple[Replica, Replica], stored: Engine
) -> None:
    a, b = pair
    a.engine.allow(100)
    request = asked("a", "one", budget=200)
    growth_id = await start(a, request)
    await until(a, growth_id, lambda g: g.rollouts_sampled >= 100)
    extend = growth_pb2.ExtendGrowthRequest(
        growth=growth_id, budget=growth_pb2.Budget(rollouts=1000), rollouts_per_node=300
    )
    for _ in range(2):
        extended = (await b.stubs.growth.ExtendGrowth(extend)).growth
        assert extended.budget == growth_pb2.Budget(rollouts=1000)
        assert extended.rollouts_per_node == 300
    a.engine.allow(None)
    assert (await ended(a, growth_id)).rollouts_sampled == 300
    # The request that started it still finds it, and one that ended goes on when it is extended.
    assert await start(b, request) == growth_id
    extend.rollouts_per_node = 400
    await b.stubs.growth.ExtendGrowth(extend)
    assert (await ended(b, growth_id)).rollouts_sampled == 400 == rollouts(stored)
    check(stored, a, b)


async def test_the_same_to_a_smaller_half_width(
    pair: tuple[Replica, Replica], stored: Engine
) -> None:
    a, b = pair
    wide = growth_of(
        growth_pb2.GrowthTarget(node=prefix()),
        request_id="a",
        rollouts_per_node=0,
        allocation=growth_pb2.ALLOCATION_ADAPTIVE,
        precision=growth_pb2.Precision(half_width=1.0, flat_norm=0.01),
        budget=growth_pb2.Budget(rollouts=60),
    )
    growth_id = await start(a, wide)
    before = await ended(a, growth_id)
    extended = await b.stubs.growth.ExtendGrowth(
        growth_pb2.ExtendGrowthRequest(
            growth=growth_id,
            precision=growth_pb2.Precision(half_width=0.9),
            budget=growth_pb2.Budget(tokens=100_000, rollouts=300),
        )
    )
    found = extended.growth.precision
    assert (found.half_width, found.flat_norm, found.statistic) == (
        0.9,
        0.01,
        growth_pb2.STATISTIC_COSINE,
    )
    after = await ended(b, growth_id)
    assert after.rollouts_sampled >= before.rollouts_sampled
    assert after.budget == growth_pb2.Budget(tokens=100_000, rollouts=300)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "budget"),
    "a budget taken away": ({"budget": growth_pb2.Budget(rollouts=9999)}, "budget.rollouts"),
    "a budget above the limit": ({"budget": growth_pb2.Budget(rollouts=10**12)}, "budget.rollouts"),
    "a goal below 0": ({"rollouts_per_node": -1}, "rollouts_per_node"),
    "a precision": ({"precision": growth_pb2.Precision(half_width=0.1)}, "precision"),
    "no growth": ({"growth": "", "rollouts_per_node": 1}, "growth"),
}


async def test_what_cannot_be_done_is_refused_by_field(pair: tuple[Replica, Replica]) -> None:
    a, _ = pair
    stub = a.stubs.growth
    growth_id = await start(a, asked("a", "one", goal=10))
    await ended(a, growth_id)
    for name, (given, field) in BAD.items():
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.ExtendGrowth(
                growth_pb2.ExtendGrowthRequest(**{"growth": growth_id, **given})
            )
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT, name
        assert fields_of(refused.value) == [field], name
    for call in (
        stub.PauseGrowth(growth_pb2.PauseGrowthRequest(growth=growth_id)),
        stub.ResumeGrowth(growth_pb2.ResumeGrowthRequest(growth=growth_id)),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    for call in (
        stub.PauseGrowth(growth_pb2.PauseGrowthRequest(growth="gro-none")),
        stub.ListGrowths(growth_pb2.ListGrowthsRequest(policy="nobody")),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        assert refused.value.code() == grpc.StatusCode.NOT_FOUND
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.ListGrowths(growth_pb2.ListGrowthsRequest(states=[99]))  # type: ignore[list-item]
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def fields_of(error: grpc.aio.AioRpcError) -> list[str]:
    """Which fields an answer complains about."""
    status, found = rpc_status.from_call(error), error_details_pb2.BadRequest()
    assert status is not None
    for detail in status.details:
        detail.Unpack(found)
    return [violation.field for violation in found.field_violations]
