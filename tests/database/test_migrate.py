"""The migrations make the schema that the code uses, in any order of events."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import insert, inspect, select, text
from typer.testing import CliRunner
from unmask_server.cli import app
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
    paid = NewRollout(bytes(16), (5, 6, 2), 1, FINISH_STOP, {1: 1.0}, "gro-" + 12 * "0a")
    other = NewRollout(bytes(15) + b"1", (*range(70, 300), 70_000), 0, FINISH_STOP, {1: 0.0}, "x")
    long = NewRollout(bytes(15) + b"2", (9,) * 400, 3, FINISH_STOP, {1: 0.0})
    store.add_rollouts(tree, [paid, other, long])

    def everything() -> dict[str, list[tuple[object, ...]]]:
        with read(engine) as connection:
            return {
                name: [
                    tuple(row)
                    for row in connection.execute(select(table).order_by(*table.primary_key))
                ]
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


@pytest.mark.parametrize(
    ("revision", "flags", "told"),
    [
        ("from-the-future", [], "which this version does not know"),
        ("from-the-future", ["--no-migrate"], "which this version does not know"),
        ("0003", ["--no-migrate"], "back it up, then run `unmask-server migrate`"),
        (None, ["--no-migrate"], "no tables yet: run `unmask-server migrate`"),
    ],
)
def test_a_server_serves_only_its_own_revision(
    empty_url: str,
    tmp_path: Path,
    revision: str | None,
    flags: list[str],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Its standard error is closed when it is done; other tests' loggers must not keep it.
    monkeypatch.setattr("unmask_server.logs.configure", lambda *_: None)
    if revision == "from-the-future":
        migrate(empty_url)
        engine = open_database(empty_url)
        with write(engine) as connection:
            connection.execute(text(f"UPDATE alembic_version SET version_num = '{revision}'"))
        engine.dispose()
    elif revision is not None:
        migrate(empty_url, revision)
    command = ["serve", "--database", empty_url, "--listen", f"unix:{tmp_path}/s", *flags]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2
    assert told in result.output


def test_an_unknown_target_is_refused(database_url: str) -> None:
    with pytest.raises(SchemaRevisionError, match="cannot migrate to 'nowhere'"):
        migrate(database_url, "nowhere")
