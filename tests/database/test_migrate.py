"""The migrations make the schema that the code uses, in any order of events."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import insert, inspect, select, text
from unmask_server.database.connect import open_database, read, write
from unmask_server.database.migrate import (
    SchemaRevisionError,
    current_revision,
    head_revision,
    migrate,
    require_head,
)
from unmask_server.database.schema import metadata
from unmask_server.tree import FINISH_STOP, NewRollout, TreeStore

from tests.stores import fill_catalog


def test_the_migrated_schema_is_the_one_in_the_code(empty_url: str) -> None:
    assert migrate(empty_url) == head_revision()
    engine = open_database(empty_url)
    with read(engine) as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
    engine.dispose()


def test_down_and_up_again(empty_url: str) -> None:
    migrate(empty_url)
    assert migrate(empty_url, "base") is None
    engine = open_database(empty_url)
    assert set(inspect(engine).get_table_names()) <= {"alembic_version"}
    assert current_revision(engine) is None
    assert migrate(empty_url) == head_revision()
    assert set(metadata.tables) <= set(inspect(engine).get_table_names())
    engine.dispose()


def test_what_is_stored_survives_the_way_down_to_each_revision_and_up_again(
    empty_url: str,
) -> None:
    migrate(empty_url)
    engine = open_database(empty_url)
    fill_catalog(engine)
    store = TreeStore(engine)
    tree = store.open_tree("p1", "q1").id
    store.activate_verifier(tree, 1, lambda rollouts: [0.0] * len(rollouts))
    store.add_rollouts(tree, [NewRollout(bytes(16), (5, 6, 2), 1, FINISH_STOP, {1: 1.0})])

    def everything() -> dict[str, list[tuple[object, ...]]]:
        with read(engine) as connection:
            return {
                name: [tuple(row) for row in connection.execute(select(table))]
                for name, table in metadata.tables.items()
            }

    before = everything()
    assert before["policy"]
    assert before["node"]
    for revision in ("0001",):
        engine.dispose()
        migrate(empty_url, revision)
        migrate(empty_url)
        assert everything() == before
    engine.dispose()


def test_teachers_of_later_kinds_go_on_the_way_down(empty_url: str) -> None:
    migrate(empty_url)
    engine = open_database(empty_url)
    fill_catalog(engine)
    common = {"model_fingerprint": "m", "context": "", "context_template": "", "prompting": {}}
    rows: list[dict[str, object]] = [
        {"id": "plain"},
        {"id": "flat", "control": "flattened"},
        {"id": "filed", "stored": "a file"},
        {"id": "permuted", "control": "permuted", "base_id": "filed"},
    ]
    blank = {"control": None, "base_id": None, "stored": None, "created_at": 0.0}
    with write(engine) as connection:
        connection.execute(insert(metadata.tables["teacher"]), [common | blank | r for r in rows])

    def teachers() -> set[str]:
        with read(engine) as connection:
            return set(connection.scalars(text("SELECT id FROM teacher")))

    for revision, left in (
        ("0005_controls", {"plain", "flat"}),
        ("0004_rollout_scores", {"plain"}),
    ):
        engine.dispose()
        migrate(empty_url, revision)
        assert teachers() == left
    engine.dispose()


def test_migrating_twice_changes_nothing(database_url: str) -> None:
    assert migrate(database_url) == head_revision()


def test_several_migrate_at_once(empty_url: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(migrate, [empty_url] * 4)) == {head_revision()}


def test_serving_needs_a_migrated_database(empty_url: str) -> None:
    engine = open_database(empty_url)
    with pytest.raises(SchemaRevisionError, match="no tables yet: run `unmask-server migrate`"):
        require_head(engine)
    migrate(empty_url)
    require_head(engine)
    engine.dispose()


def test_a_newer_database_is_refused_and_left_alone(empty_url: str) -> None:
    migrate(empty_url)
    engine = open_database(empty_url)
    with write(engine) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = 'from-the-future'"))
    with pytest.raises(SchemaRevisionError, match="does not know"):
        require_head(engine)
    with pytest.raises(SchemaRevisionError, match="does not know"):
        migrate(empty_url)
    assert current_revision(engine) == "from-the-future"
    engine.dispose()


def test_an_unknown_target_is_refused(database_url: str) -> None:
    with pytest.raises(SchemaRevisionError, match="cannot migrate to 'nowhere'"):
        migrate(database_url, "nowhere")
