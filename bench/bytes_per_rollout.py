"""Bytes that a rollout takes in the database over its tokens at four bytes each.

Value: growth of the file (SQLite, after a checkpoint; PostgreSQL: of the tables with their indexes)
per rollout: with all rows and indexes, not the tokens alone. Baseline: the rollout's tokens, four
bytes each, as a flat file of generations holds them; `..._sampled`: without those that were forced.

- `bytes_per_rollout`: the shipped student on word problems, grown as a diagnosis grows it.
- `bytes_per_rollout_long`: tails of 500 tokens of a vocabulary of 150,000, on both stores. Ids are
  drawn as words are (Zipf), independently: real text repeats itself and gets shorter.

`--tables` says which table or index takes how much; the last line of the shipped student's is what
the distributions take that were scored before, which no rollout adds to.
"""

from __future__ import annotations

import argparse
import random
import sqlite3
import tempfile
from bisect import bisect
from itertools import accumulate
from pathlib import Path
from typing import Any

import unmask
from sqlalchemy import func, select, text
from unmask_server.database.connect import open_database, read
from unmask_server.database.schema import rollout
from unmask_server.tree import FINISH_STOP, NewRollout, TreeStore

from bench.figures import figure, show
from bench.forecasts import ROOT
from bench.insert_rows import Database
from tests.stores import new_database, postgresql_server

GOAL = 1.5
TOKEN_BYTES = 4
QUESTIONS, EACH = 4, 3000
GROWTH = "gro-" + 24 * "a"
LONG, TAIL, VOCABULARY, BATCH = 5000, 500, 150_000, 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", action="store_true")
    tables = parser.parse_args().tables
    with tempfile.TemporaryDirectory() as folder:
        shipped(Path(folder) / "shipped.db", tables)
        long_tails("bytes_per_rollout_long", f"sqlite:///{folder}/long.db", tables)
    with postgresql_server() as server:
        long_tails("bytes_per_rollout_long_postgresql", new_database(server), tables)


def shipped(path: Path, tables: bool) -> None:
    """Grow the shipped student's nodes on some questions."""
    with unmask.local(path) as client:
        models = ROOT / "examples" / "models"
        client.register_policy(models / "student", name="student", temperature=0.7)
        client.register_teacher(models / "teacher-strong", name="strong", policies=["student"])
        registered = client.register_questions(
            ROOT / "examples" / "word_problems" / "questions.jsonl", verifier="hash_answer"
        )
        questions = [row.question.id for row in registered][:QUESTIONS]
        found = client.sample_trajectories("student", questions, count=2).trajectories
        for trajectory in found:
            # Scored now, so that what follows is rollouts alone.
            list(client.trajectory_alignments(trajectory, teachers=["strong"]))
        url = f"sqlite:///{path}"
        before = Size.of(url)
        for question in questions:
            targets = [t.id for t in found if t.question_id == question]
            client.grow(targets, teachers=["strong"], half_width=0.01, rollouts=EACH).wait()
        report("bytes_per_rollout", before, Size.of(url), tables)
        if tables:
            held = before.tables["distribution"] + before.tables["sqlite_autoindex_distribution_1"]
            print(f"    {held} bytes of distributions beside {sum(before.tables.values())} in all")


def long_tails(name: str, url: str, tables: bool) -> None:
    """Fill a tree with long rollouts, forced at nodes of a trajectory."""
    database = Database(url)
    store = TreeStore(database.engine)
    tree = store.open_tree("p", "q").id
    store.activate_verifier(tree, 1, lambda rollouts: [0.0] * len(rollouts))
    rng = random.Random(0)
    weights = list(accumulate(1 / (rank + 2.7) for rank in range(VOCABULARY)))
    # The commonest words do not have the smallest ids.
    ids = rng.sample(range(VOCABULARY), VOCABULARY)

    def draw(count: int) -> list[int]:
        return [ids[bisect(weights, rng.random() * weights[-1])] for _ in range(count)]

    main_path = draw(TAIL)
    before = Size.of(url)
    for _ in range(LONG // BATCH):
        batch = []
        for _ in range(BATCH):
            forced = rng.randrange(TAIL)
            tokens = tuple(main_path[:forced] + draw(TAIL))
            reward = {1: float(rng.random() < 0.4)}
            uid = rng.randbytes(16)
            batch.append(NewRollout(uid, tokens, forced, FINISH_STOP, reward, GROWTH))
        store.add_rollouts(tree, batch)
    report(name, before, Size.of(url), tables)
    database.close()


class Size:
    """What is stored, and how much room it takes."""

    def __init__(self, rollouts: int, tokens: int, forced: int, tables: dict[str, int]) -> None:
        self.rollouts = rollouts
        self.tokens = tokens
        self.forced = forced
        """Of the tokens."""
        self.tables = tables
        """Bytes by table and index."""

    @classmethod
    def of(cls, url: str) -> Size:
        """Of a database, as it is on the disk."""
        engine = open_database(url)
        depth, forced = func.sum(rollout.c.depth), func.sum(rollout.c.forced_depth)
        wanted = select(func.count(), func.coalesce(depth, 0), func.coalesce(forced, 0))
        with read(engine) as connection:
            count, tokens, imposed = map(int, connection.execute(wanted).one())
            tables = _tables(connection, engine.url.database or "")
        engine.dispose()
        return cls(count, tokens, imposed, tables)


def _tables(connection: Any, path: str) -> dict[str, int]:
    if connection.dialect.name == "sqlite":
        with sqlite3.connect(path) as raw:
            raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            named = raw.execute("SELECT name, sum(pgsize) FROM dbstat GROUP BY name").fetchall()
        tables = {name: int(size) for name, size in named}
        tables["(free pages)"] = Path(path).stat().st_size - sum(tables.values())
        return tables
    sizes = text("SELECT relname, pg_table_size(oid) FROM pg_class WHERE relkind IN ('r', 'i') "
                 "AND relnamespace = 'public'::regnamespace")  # fmt: skip
    return {name: int(size) for name, size in connection.execute(sizes)}


def report(name: str, before: Size, after: Size, tables: bool) -> None:
    """Print the figure."""
    rollouts = after.rollouts - before.rollouts
    raw = TOKEN_BYTES * (after.tokens - before.tokens) / rollouts
    sampled = raw - TOKEN_BYTES * (after.forced - before.forced) / rollouts
    grown = {key: size - before.tables.get(key, 0) for key, size in after.tables.items()}
    each = sum(grown.values()) / rollouts
    show(figure(name, "bytes", [each], [raw], goal=GOAL, direction="down"))
    show(figure(f"{name}_sampled", "bytes", [each], [sampled], direction="down"))
    if tables:
        for key, size in sorted(grown.items(), key=lambda item: -item[1])[:8]:
            print(f"    {size / rollouts:8.1f} {key}")


if __name__ == "__main__":
    main()
