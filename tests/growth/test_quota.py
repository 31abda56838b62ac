"""What a client may have in a day, on both stores."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Engine, insert, select, update
from unmask_server.access.principals import Budget
from unmask_server.catalog.errors import BudgetSpent, InvalidArgument, QuotaExceeded
from unmask_server.database.connect import read, write
from unmask_server.database.schema import client_total, growth, growth_client
from unmask_server.growth import quota
from unmask_server.growth.quota import DAY_SECONDS, Quota, Quotas
from unmask_server.growth.spec import State

Start = Callable[..., None]


@pytest.fixture
def start(database: Engine) -> Start:
    """Admit a growth to a server that allows 100 rollouts a day, and make it."""
    quotas = Quotas(database, Quota(rollouts=100))

    def admit(client: str, request_id: str, rollouts: int, sampled: int | None = None) -> None:
        quotas.admit(client, request_id, rollouts=rollouts, tokens=None)
        state = State.RUNNING if sampled is None else State.SUCCEEDED
        numbers = ("rollouts_cached", "rollouts_planned", "nodes", "nodes_flat", "attempt")
        row = {
            "id": request_id, "request_id": request_id, "spec": {}, "state": state.value,
            "rollouts_sampled": sampled or 0, "tokens_sampled": 0, "created_at": 0.0,
            "updated_at": 0.0, **dict.fromkeys(numbers, 0),
        }  # fmt: skip
        with write(database) as connection:
            known = select(growth.c.id).where(growth.c.id == request_id)
            if connection.execute(known).first() is None:
                connection.execute(insert(growth), row)

    return admit


def test_budgets_count_until_they_are_used_up(start: Start) -> None:
    start("a", "1", 60)
    start("a", "2", 40)
    with pytest.raises(QuotaExceeded, match="1 rollouts are more than the 0 that are left") as full:
        start("a", "3", 1)
    assert DAY_SECONDS - 60 < full.value.retry_seconds <= DAY_SECONDS
    # Again the same, and somebody else.
    start("a", "1", 60)
    start("b", "4", 100)


def test_what_has_ended_counts_as_sampled(start: Start) -> None:
    start("a", "1", 100, sampled=30)
    start("a", "2", 70)
    with pytest.raises(QuotaExceeded):
        start("a", "3", 1)


def test_a_day_later_it_is_free_again(database: Engine, start: Start) -> None:
    start("a", "1", 60)
    start("a", "2", 40)
    first = growth_client.c.request_id == "1"
    with write(database) as connection:
        past = update(growth_client).where(first)
        connection.execute(past.values(started_at=growth_client.c.started_at - DAY_SECONDS + 500))
    with pytest.raises(QuotaExceeded) as full:
        start("a", "3", 60)
    assert 400 < full.value.retry_seconds <= 500
    with write(database) as connection:
        connection.execute(past.values(started_at=growth_client.c.started_at - 501))
    start("a", "3", 60)
    with read(database) as connection:
        # One that runs for longer than a day is known until it has ended.
        assert set(connection.scalars(select(growth_client.c.request_id))) == {"1", "2", "3"}
        assert connection.execute(select(client_total)).all() == []
    with write(database) as connection:
        ended = {"state": State.SUCCEEDED.value, "rollouts_sampled": 59, "tokens_sampled": 7}
        connection.execute(update(growth).where(growth.c.id == "1").values(ended))
    start("b", "4", 1)
    with read(database) as connection:
        assert set(connection.scalars(select(growth_client.c.request_id))) == {"2", "3", "4"}
        assert connection.execute(select(client_total)).all() == [("a", 59, 7)]


def test_what_was_admitted_and_never_made_is_forgotten(database: Engine, start: Start) -> None:
    Quotas(database, Quota(rollouts=100)).admit("a", "lost", rollouts=100, tokens=None)
    with pytest.raises(QuotaExceeded):
        start("a", "1", 1)
    with write(database) as connection:
        connection.execute(update(growth_client).values(started_at=growth_client.c.started_at - 61))
    start("a", "1", 100)


def test_two_at_once_do_not_share_what_is_left(database: Engine) -> None:
    quotas = [Quotas(database, Quota(rollouts=100)) for _ in range(4)]

    def admit(i: int) -> bool:
        try:
            quotas[i % 4].admit("a", f"{i}", rollouts=20, tokens=None)
        except QuotaExceeded:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(admit, range(16))) == 5


def test_a_budget_must_say_what_is_counted(database: Engine) -> None:
    quotas = Quotas(database, Quota(tokens=1000))
    with pytest.raises(InvalidArgument, match=r"budget.tokens: say how many at most"):
        quotas.admit("a", "1", rollouts=5, tokens=None)
    with pytest.raises(InvalidArgument, match=r"1001 are more than the 1000 a client may have"):
        quotas.admit("a", "1", rollouts=5, tokens=1001)
    quotas.admit("a", "1", rollouts=None, tokens=1000)
    Quotas(database, Quota()).admit("a", "2", rollouts=None, tokens=None)


def test_what_a_client_may_have_in_all_is_used_up_for_good(
    database: Engine, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    quotas, budget = Quotas(database, Quota()), Budget(rollouts=100)
    start("a", "1", 60, sampled=50)
    day = time.time() + DAY_SECONDS + 1
    monkeypatch.setattr(time, "time", lambda: day)
    with pytest.raises(BudgetSpent, match="51 rollouts are more than the 50 that are left of"):
        quotas.admit("a", "2", rollouts=51, tokens=None, budget=budget)
    quotas.admit("a", "2", rollouts=50, tokens=None, budget=budget)
    monkeypatch.setattr(time, "time", lambda: 2 * day)
    # Never made; the one that was is remembered, whoever let its row go.
    quotas.admit("b", "3", rollouts=1, tokens=None, budget=budget)
    with pytest.raises(BudgetSpent):
        quotas.admit("a", "4", rollouts=51, tokens=None, budget=budget)
    with pytest.raises(InvalidArgument, match=r"budget.rollouts: 101 are more than the 100"):
        quotas.admit("a", "5", rollouts=101, tokens=None, budget=budget)


def test_the_smaller_of_all_limits_holds(database: Engine) -> None:
    quotas = Quotas(database, Quota(rollouts=100))
    with pytest.raises(InvalidArgument, match=r"more than the 50"):
        quotas.admit("a", "1", rollouts=60, tokens=None, budget=Budget(rollouts_per_day=50))
    with pytest.raises(InvalidArgument, match=r"budget.tokens: say how many"):
        quotas.admit("a", "1", rollouts=60, tokens=None, budget=Budget(tokens=50))
    quotas.admit("a", "1", rollouts=60, tokens=None, budget=Budget(rollouts_per_day=500))


def test_who_adds_to_a_growth_pays_for_it(database: Engine, start: Start) -> None:
    quotas = Quotas(database, Quota(rollouts=100))
    start("a", "1", 30)
    quotas.charge("b", rollouts=90, tokens=0, budget=Budget())
    with pytest.raises(QuotaExceeded):
        quotas.charge("b", rollouts=11, tokens=0, budget=Budget())
    with write(database) as connection:
        ended = {"state": State.SUCCEEDED.value, "rollouts_sampled": 120}
        connection.execute(update(growth).values(ended))
    quotas.charge("a", rollouts=70, tokens=0, budget=Budget())


async def test_sampling_counts_in_full_until_it_is_known_what_it_was(database: Engine) -> None:
    quotas = Quotas(database, Quota(rollouts=10, tokens=1000))
    async with quotas.sampling("a", Budget(), 8, 800) as sampled:
        with pytest.raises(QuotaExceeded):
            quotas.charge("a", rollouts=3, tokens=0, budget=Budget())
        sampled.rollouts, sampled.tokens = 4, 100
    quotas.charge("a", rollouts=6, tokens=900, budget=Budget())
    with pytest.raises(QuotaExceeded):
        quotas.charge("a", rollouts=0, tokens=1, budget=Budget())


async def test_sampling_that_fails_counts_as_far_as_it_came(database: Engine) -> None:
    quotas = Quotas(database, Quota(rollouts=10))

    async def fail() -> None:
        async with quotas.sampling("b", Budget(), 8, 800) as sampled:
            sampled.rollouts += 1
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        await fail()
    with pytest.raises(QuotaExceeded):
        quotas.charge("b", rollouts=10, tokens=0, budget=Budget())
    quotas.charge("b", rollouts=9, tokens=1000, budget=Budget())


async def test_sampling_that_is_cancelled_while_it_is_admitted_counts_nothing(
    database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    quotas = Quotas(database, Quota(rollouts=10))
    admit, entered, let_go = quota._admit, threading.Event(), threading.Event()

    def slow(*arguments: Any) -> None:
        entered.set()
        assert let_go.wait(60)
        admit(*arguments)

    async def sample() -> None:
        async with quotas.sampling("a", Budget(), 8, 800):
            raise AssertionError("it was cancelled before")

    with monkeypatch.context() as patch:
        patch.setattr(quota, "_admit", slow)
        call = asyncio.create_task(sample())
        assert await asyncio.to_thread(entered.wait, 60)
        call.cancel()
        let_go.set()
        with pytest.raises(asyncio.CancelledError):
            await call
    with read(database) as connection:
        counted = select(growth_client.c.rollouts_done, growth_client.c.tokens_done)
        assert connection.execute(counted).all() == [(0, 0)]
    quotas.charge("a", rollouts=10, tokens=0, budget=Budget())
