"""Growths of earlier revisions keep their state, and are found by what they are about."""

from __future__ import annotations

import hashlib
import json

from sqlalchemy import Engine, select, text
from unmask_server.database.connect import open_database, read, write
from unmask_server.database.migrate import migrate
from unmask_server.database.schema import growth_subject
from unmask_server.growth.control import GrowthControl
from unmask_server.growth.spec import State, Target
from unmask_server.growth.store import GrowthStore, Listing

from tests.growth.making import spec
from tests.stores import fill_catalog

BEFORE = "0006_stored_teachers"
ID = "gro-" + hashlib.blake2b(b"r", digest_size=12).hexdigest()
TARGETS = (
    Target(trajectory_id="t"),
    Target(policy_id="p2", question_id="q1", prefix=(1, 2)),
    Target(policy_id="p2", question_id="q1", free=True),
)


def add_growth(engine: Engine) -> None:
    """As the revision before wrote it."""
    with write(engine) as connection:
        connection.execute(
            text(
                "INSERT INTO trajectory (id, policy_id, question_id, tokens, finish, created_at) "
                "VALUES ('t', 'p1', 'q2', :tokens, 0, 1.0)"
            ),
            {"tokens": bytes(4)},
        )
        names = "rollouts_sampled, tokens_sampled, rollouts_cached, rollouts_planned"
        connection.execute(
            text(
                f"INSERT INTO growth (id, request_id, spec, state, {names}, nodes, nodes_flat, "
                "attempt, created_at, updated_at) "
                "VALUES (:id, 'r', :spec, 'queued', 5, 50, 0, 10, 1, 0, 1, 1.0, 1.0)"
            ),
            {"id": ID, "spec": json.dumps(spec(targets=TARGETS).to_json())},
        )


def test_growths_come_over_with_what_they_are_about_and_go_back(empty_url: str) -> None:
    migrate(empty_url, BEFORE)
    engine = open_database(empty_url)
    fill_catalog(engine)
    add_growth(engine)
    engine.dispose()
    migrate(empty_url)
    store = GrowthStore(engine)
    with read(engine) as connection:
        subjects = connection.execute(
            select(growth_subject.c.policy_id, growth_subject.c.question_id)
        ).all()
    assert {tuple(row) for row in subjects} == {("p1", "q2"), ("p2", "q1")}
    (found,) = store.page(10, None, Listing(policy_id="p1"))
    assert (found.rollouts_sampled, found.revision, found.has_turn) == (5, 0, False)
    assert found.first_spec == spec(targets=TARGETS)
    assert store.create("r", spec(targets=TARGETS), [("p1", "q2")]) == found
    # A server of the revision before knows no pause: it must not read of one.
    assert GrowthControl(engine).pause(ID).state is State.PAUSED
    engine.dispose()
    migrate(empty_url, BEFORE)
    with read(engine) as connection:
        assert connection.execute(text("SELECT state FROM growth")).scalar_one() == "cancelled"
    engine.dispose()
    migrate(empty_url)
    assert store.get(ID).state is State.CANCELLED
    engine.dispose()
