"""What a client may have in a day, on both stores."""

from __future__ import annotations

import asyncio
import re
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, insert, select, update
from unmask_server.access.principals import Budget
from unmask_server.catalog.errors import BudgetSpent, InvalidArgument, QuotaExceeded
from unmask_server.database.connect import read, write
from unmask_server.database.schema import client_total, growth, growth_client
from unmask_server.growth import quota
from unmask_server.growth.control import GrowthControl
from unmask_server.growth.quota import DAY_SECONDS, Quota, Quotas
from unmask_server.growth.spec import Growth, GrowthSpec, State

from tests.growth.making import spec

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
            "id": request_id, "request_id": request_id, "state": state.value,
            "spec": spec(max_rollouts=rollouts).to_json(),
            "rollouts_sampled": sampled or 0, "tokens_sampled": 0, "created_at": 0.0,
            "updated_at": 0.0, **dict.fromkeys(numbers, 0),
        }  # fmt: skip
        with write(database) as connection:
            known = select(growth.c.id).where(growth.c.id == request_id)
            if connection.execute(known).first() is None:
                connection.execute(insert(growth), row)

    return admit


def ask(quotas: Quotas, client: str, rollouts: int, tokens: int = 0) -> None:
    """Have something admitted."""
    quotas.admit(client, uuid.uuid4().hex, rollouts=rollouts, tokens=tokens)


def extend(quotas: Quotas, client: str, growth_id: str, rollouts: int) -> Growth:
    """Give a growth so many rollouts in all."""
    control, charge = GrowthControl(quotas._engine), quotas.charging(client, Budget())
    return control.extend(growth_id, lambda old: replace(old, max_rollouts=rollouts), charge)


def end(database: Engine, growth_id: str, state: State, sampled: int) -> None:
    values = {"state": state.value, "rollouts_sampled": sampled}
    with write(database) as connection:
        connection.execute(update(growth).where(growth.c.id == growth_id).values(values))


def counted(database: Engine, client: str) -> int:
    """Rollouts that a client is counted for in all."""
    found = Quotas(database, Quota())
    with pytest.raises(BudgetSpent) as spent:
        found.admit(client, "more", rollouts=10**6, tokens=None, budget=Budget(rollouts=10**6))
    left = re.search(r"than the (\d+) that are left", spent.value.args[0])
    assert left is not None
    return 10**6 - int(left[1])


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
    for _ in range(2):
        # Again the same adds nothing.
        extend(quotas, "b", "1", 120)
    with pytest.raises(QuotaExceeded):
        ask(quotas, "b", 11)
    end(database, "1", State.SUCCEEDED, 120)
    ask(quotas, "a", 70)


def test_an_extension_that_is_refused_or_fails_counts_nothing_and_changes_nothing(
    database: Engine, start: Start
) -> None:
    quotas, control = Quotas(database, Quota(rollouts=100)), GrowthControl(database)
    start("a", "1", 30)
    with pytest.raises(QuotaExceeded):
        extend(quotas, "b", "1", 131)

    def fail(connection: Connection, found: Growth, then: GrowthSpec) -> None:
        quotas.charging("b", Budget())(connection, found, then)
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError):
        control.extend("1", lambda old: replace(old, max_rollouts=130), fail)
    assert extend(quotas, "b", "1", 130).spec.max_rollouts == 130


def test_two_that_extend_alike_at_once_are_counted_once(database: Engine, start: Start) -> None:
    quotas = Quotas(database, Quota(rollouts=100))
    start("a", "1", 30)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: extend(quotas, "b", "1", 120), range(8)))
    ask(quotas, "b", 10)
    with pytest.raises(QuotaExceeded):
        ask(quotas, "b", 1)


@pytest.mark.parametrize("state", [State.CANCELLED, State.FAILED, State.SUCCEEDED])
@pytest.mark.parametrize("days", [0, 2])
def test_who_lets_what_has_ended_go_on_pays_for_what_is_left(
    database: Engine, start: Start, monkeypatch: pytest.MonkeyPatch, state: State, days: int
) -> None:
    quotas, later = Quotas(database, Quota(rollouts=100)), time.time() + days * DAY_SECONDS
    start("a", "1", 100)
    end(database, "1", state, 10)
    monkeypatch.setattr(time, "time", lambda: later)
    ask(quotas, "b", 8)
    growth_id, in_all = "1", 101 if state is State.SUCCEEDED else 100
    with pytest.raises(QuotaExceeded):
        extend(quotas, "b", growth_id, 103)
    assert extend(quotas, "b", growth_id, in_all).state is State.QUEUED
    assert (counted(database, "a"), counted(database, "b")) == (10, 8 + in_all - 10)
    with pytest.raises(QuotaExceeded):
        ask(quotas, "b", 100 - 8 - in_all + 10 + 1)
    end(database, "1", State.CANCELLED, 30)
    assert (counted(database, "a"), counted(database, "b")) == (10, 8 + 20)
    # Days later, and once more.
    later += 2 * DAY_SECONDS
    assert extend(quotas, "a", growth_id, in_all).state is State.QUEUED
    assert (counted(database, "a"), counted(database, "b")) == (10 + in_all - 30, 20)


@pytest.mark.parametrize("move", ["resume", "retry"])
def test_what_fails_again_and_again_counts_as_it_is(
    database: Engine, start: Start, move: str
) -> None:
    quotas = Quotas(database, Quota(rollouts=100))
    start("a", "1", 100)
    go_on = partial(getattr(GrowthControl(database), move), "1")
    for sampled in (10, 20, 30):
        end(database, "1", State.FAILED, sampled)
        assert counted(database, "a") == sampled
        for _ in range(2):
            assert go_on(quotas.charging("a", Budget())).state is State.QUEUED
        assert counted(database, "a") == 100
    end(database, "1", State.FAILED, 40)
    ask(quotas, "a", 60)
    with pytest.raises(QuotaExceeded):
        go_on(quotas.charging("a", Budget()))
    # Who is not limited lets it go on, at nobody's cost.
    assert go_on(Quotas(database, Quota()).charging("c", Budget())).state is State.QUEUED
    assert counted(database, "a") == 100


def test_what_goes_on_must_say_what_is_counted(database: Engine, start: Start) -> None:
    quotas = Quotas(database, Quota(tokens=100))
    start("a", "1", 100)
    end(database, "1", State.FAILED, 10)
    with pytest.raises(InvalidArgument, match=r"budget.tokens: the growth leaves open"):
        GrowthControl(database).resume("1", quotas.charging("a", Budget()))


async def test_sampling_counts_in_full_until_it_is_known_what_it_was(database: Engine) -> None:
    quotas = Quotas(database, Quota(rollouts=10, tokens=1000))
    async with quotas.sampling("a", Budget(), 8, 800) as sampled:
        with pytest.raises(QuotaExceeded):
            ask(quotas, "a", 3, 0)
        sampled.rollouts, sampled.tokens = 4, 100
    ask(quotas, "a", 6, 900)
    with pytest.raises(QuotaExceeded):
        ask(quotas, "a", 0, 1)


async def test_sampling_that_fails_counts_as_far_as_it_came(database: Engine) -> None:
    quotas = Quotas(database, Quota(rollouts=10))

    async def fail() -> None:
        async with quotas.sampling("b", Budget(), 8, 800) as sampled:
            sampled.rollouts += 1
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        await fail()
    with pytest.raises(QuotaExceeded):
        ask(quotas, "b", 10, 0)
    ask(quotas, "b", 9, 1000)


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
    ask(quotas, "a", 10, 0)
