"""Growth rows on both stores: found again, leased, paused, extended, listed."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from sqlalchemy import Engine, literal, select, update
from unmask_server.catalog.errors import AlreadyExists, FailedPrecondition, NotFound
from unmask_server.database.clock import now
from unmask_server.database.connect import read, transact, write
from unmask_server.database.schema import growth
from unmask_server.growth.control import GrowthControl
from unmask_server.growth.rows import LeaseLostError
from unmask_server.growth.spec import Growth, GrowthSpec, Origin, State
from unmask_server.growth.store import GrowthStore, Listing
from unmask_server.telemetry.metrics import REGISTRY

from tests.growth.making import LEASE, spec

TAKEN_OVER = "unmask_growth_takeovers_total"
ONE, TWO = ("p1", "q1"), ("p2", "q2")


@pytest.fixture
def store(database: Engine) -> GrowthStore:
    return GrowthStore(database, lease_seconds=LEASE)


@pytest.fixture
def control(database: Engine) -> GrowthControl:
    return GrowthControl(database)


def claimed(store: GrowthStore, growth_id: str, owner: str = "a") -> Growth:
    held = store.claim(growth_id, owner)
    assert held is not None
    return held


def shift_lease(database: Engine, growth_id: str, seconds: float) -> None:
    """Move the end of a lease, as a clock that is set moves it."""
    with write(database) as connection:
        connection.execute(
            update(growth)
            .where(growth.c.id == growth_id)
            .values(lease_expires_at=growth.c.lease_expires_at + seconds)
        )


def test_the_databases_clock_is_about_right(database: Engine) -> None:
    before = time.time()
    with read(database) as connection:
        found = connection.execute(select(now(), now() + 10.0, literal(1))).one()
    assert before - 60 < found[0] < time.time() + 60
    assert found[1] == pytest.approx(found[0] + 10.0, abs=1.0)


def test_one_server_at_a_time_has_a_growth(store: GrowthStore) -> None:
    made = store.create("r", spec(), [ONE])
    held = claimed(store, made.id)
    assert held.state is State.RUNNING
    assert store.claim(made.id, "b") is None
    assert store.claimable("b") == []
    assert store.claimable("a") == [made.id]
    store.release("a")
    assert store.claimable("b") == [made.id]
    assert claimed(store, made.id, "b").attempt == held.attempt + 1


def test_who_takes_a_growth_over_knows_the_call_that_started_it(store: GrowthStore) -> None:
    before = REGISTRY.get_sample_value(TAKEN_OVER)
    origin = Origin("call-1", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    made = store.create("r", spec(), [ONE], origin)
    claimed(store, made.id, "a")
    assert store.create("r", spec(), [ONE], Origin("call-2")).call_id == "call-1"
    assert REGISTRY.get_sample_value(TAKEN_OVER) == before
    store.release("a")
    taken = claimed(store, made.id, "b")
    assert (taken.call_id, taken.call_trace) == (origin.call_id, origin.call_trace)
    assert REGISTRY.get_sample_value(TAKEN_OVER) == before + 1


@pytest.mark.parametrize("jump", [-LEASE - 1, 3 * LEASE])
def test_a_lease_ends_when_the_clock_says_so_or_was_set_back(
    database: Engine, store: GrowthStore, jump: float
) -> None:
    made = store.create("r", spec(), [ONE])
    dead = claimed(store, made.id)
    shift_lease(database, made.id, jump)
    alive = claimed(store, made.id, "b")
    # What the first server still stores is refused as its own, and charged all the same.
    with pytest.raises(LeaseLostError):
        transact(database, lambda c: store.charge(c, dead, 10, 100))
    transact(database, lambda c: store.charge_late(c, dead, 10, 100))
    transact(database, lambda c: store.charge(c, alive, 5, 50))
    assert store.get(made.id).rollouts_sampled == 15
    assert store.get(made.id).rollouts_left == 985
    assert store.renew("a", [made.id]) == set()
    assert store.renew("b", [made.id]) == {made.id}


def test_a_renewed_lease_outlives_a_clock_that_was_set(
    database: Engine, store: GrowthStore
) -> None:
    made = store.create("r", spec(), [ONE])
    claimed(store, made.id)
    shift_lease(database, made.id, 3 * LEASE)
    assert store.claimable("b") == [made.id]
    store.renew("a", [made.id])
    assert store.claimable("b") == []


def test_a_paused_growth_is_nobodys_until_it_is_resumed(
    database: Engine, store: GrowthStore, control: GrowthControl
) -> None:
    made = store.create("r", spec(), [ONE])
    held = claimed(store, made.id)
    for _ in range(2):
        assert control.pause(made.id).state is State.PAUSED
    assert store.claim(made.id, "a") is None
    assert store.claimable("a") == []
    with pytest.raises(LeaseLostError):
        transact(database, lambda c: store.charge(c, held, 1, 1))
    assert store.create("r", spec(), [ONE]).state is State.PAUSED
    assert control.resume(made.id).state is State.QUEUED
    held = claimed(store, made.id)
    assert control.resume(made.id).state is State.RUNNING
    assert store.finish(held, State.SUCCEEDED)
    for move in (control.pause, control.resume):
        with pytest.raises(FailedPrecondition):
            move(made.id)
    with pytest.raises(NotFound):
        control.pause("gro-none")


def test_an_extended_growth_goes_on_and_is_found_by_its_first_request(
    store: GrowthStore, control: GrowthControl
) -> None:
    made = store.create("r", spec(), [ONE])
    assert store.finish(claimed(store, made.id), State.SUCCEEDED)

    def more(old: GrowthSpec) -> GrowthSpec:
        return replace(old, max_rollouts=2000)

    for _ in range(2):
        found = control.extend(made.id, more)
        assert (found.state, found.revision, found.rollouts_left) == (State.QUEUED, 1, 2000)
    assert store.create("r", spec(), [ONE]) == found
    with pytest.raises(AlreadyExists):
        store.create("r", spec(max_rollouts=2000), [ONE])


def test_a_growth_extended_as_it_ends_has_not_ended(
    store: GrowthStore, control: GrowthControl
) -> None:
    made = store.create("r", spec(), [ONE])
    held = claimed(store, made.id)
    control.extend(made.id, lambda old: replace(old, rollouts_per_node=128))
    assert not store.finish(held, State.SUCCEEDED, revision=held.revision)
    assert store.get(made.id).state is State.RUNNING
    assert store.finish(held, State.SUCCEEDED, revision=1)


def test_an_extension_leaves_a_pause_and_takes_up_what_was_cancelled(
    store: GrowthStore, control: GrowthControl
) -> None:
    made = store.create("r", spec(), [ONE])
    control.pause(made.id)
    assert control.extend(made.id, lambda old: replace(old, max_rollouts=9999)).state is (
        State.PAUSED
    )
    assert control.cancel(made.id).state is State.CANCELLED
    assert control.extend(made.id, lambda old: old).state is State.QUEUED


def test_lists_are_limited_by_state_policy_and_question(
    store: GrowthStore, control: GrowthControl
) -> None:
    a = store.create("a", spec(), [ONE])
    b = store.create("b", spec(), [TWO])
    c = store.create("c", spec(), [ONE, TWO, ("p1", "q2")])
    control.pause(b.id)

    def listed(**limits: object) -> set[str]:
        return {found.id for found in store.page(10, None, Listing(**limits))}  # type: ignore[arg-type]

    assert listed() == {a.id, b.id, c.id}
    assert listed(policy_id="p1") == {a.id, c.id}
    assert listed(policy_id="p2", question_id="q2") == {b.id, c.id}
    # Under this policy, on this question: one target that is both.
    assert listed(policy_id="p2", question_id="q1") == set()
    assert listed(states=(State.PAUSED,)) == {b.id}
    assert listed(states=(State.PAUSED, State.QUEUED), question_id="q1") == {a.id, c.id}
