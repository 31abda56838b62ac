"""How fast rollouts are recorded, against inserting the same rows without thinking.

Value: rows a second, of all tables, through `TreeStore.add_rollouts`. Baseline: the rows that this
left behind, inserted into an empty database of the same kind by SQLAlchemy Core's bulk insertion,
one statement a table, in one transaction. Both pay for the same indexes, foreign keys and commit.

On an SQLite file, then on PostgreSQL, both committing to the disk.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable
from typing import Any

from sqlalchemy import Engine, insert, select
from unmask_server.database import schema
from unmask_server.database.connect import open_database, read, write
from unmask_server.database.migrate import migrate
from unmask_server.tree import FINISH_STOP, NewRollout, TreeStore

from bench.figures import figure, show
from tests.stores import new_database, postgresql_server

GOAL = 0.3
ROUNDS = 5
BATCHES = 2
ROLLOUTS = 2000
TOKENS = 60
TRAJECTORIES = 8
NewUrl = Callable[[str, str], str]
"""The URL of an empty database, from a folder and a name."""

TREE_TABLES = (schema.node, schema.node_stat, schema.rollout, schema.outcome)


def main() -> None:
    show(compare("insert_rows", lambda folder, name: f"sqlite:///{folder}/{name}.db"))
    with postgresql_server(fsync=True) as server:
        show(compare("insert_rows_postgresql", lambda folder, name: new_database(server)))


def compare(name: str, new_url: NewUrl) -> dict[str, Any]:
    """A figure from fresh databases."""
    rates = [measure(seed, new_url) for seed in range(ROUNDS + 1)][1:]  # the first one warms up
    ours, theirs = zip(*rates, strict=True)
    return figure(name, "rows/s", ours, theirs, goal=GOAL)


def measure(seed: int, new_url: NewUrl) -> tuple[float, float]:
    """Return the rows a second of the store and of the baseline, on a fresh database each."""
    batches = make_batches(seed)
    with tempfile.TemporaryDirectory() as folder:
        first = Database(new_url(folder, "store"))
        store = TreeStore(first.engine)
        tree = store.open_tree("p", "q").id
        store.activate_verifier(tree, 1, lambda rollouts: [0.0 for _ in rollouts])
        begin = time.perf_counter()
        for batch in batches:
            store.add_rollouts(tree, batch)
        seconds = time.perf_counter() - begin
        rows = {table: first.rows(table) for table in TREE_TABLES}
        total = sum(map(len, rows.values()))
        first.close()

        second = Database(new_url(folder, "baseline"))
        assert TreeStore(second.engine).open_tree("p", "q").id == tree
        root = tree << 32
        with write(second.engine) as connection:
            connection.execute(schema.node.delete().where(schema.node.c.id == root))
        begin = time.perf_counter()
        with write(second.engine) as connection:
            for table in TREE_TABLES:
                connection.execute(insert(table), rows[table])
        bare_seconds = time.perf_counter() - begin
        second.close()
    return total / seconds, total / bare_seconds


def make_batches(seed: int) -> list[list[NewRollout]]:
    """Make what a growth brings: some free rollouts, most forced at nodes of a few trajectories.

    After the forced part tokens are drawn from a skewed distribution, so rollouts of one node share
    their first few tokens.
    """
    rng = random.Random(seed)
    vocabulary = range(5, 1000)
    weights = [1 / rank**1.5 for rank in range(1, len(vocabulary) + 1)]

    def draw(count: int) -> list[int]:
        return rng.choices(vocabulary, weights, k=count)

    trajectories = [draw(TOKENS) for _ in range(TRAJECTORIES)]
    batches = []
    for _ in range(BATCHES):
        batch = []
        for number in range(ROLLOUTS):
            forced = 0 if number % 5 == 0 else rng.randrange(1, TOKENS)
            prefix = rng.choice(trajectories)[: max(forced - 1, 0)]
            tokens = tuple(prefix + draw(TOKENS - len(prefix)))
            reward = float(rng.random() < 0.4)
            batch.append(
                NewRollout(rng.randbytes(16), tokens, forced, FINISH_STOP, {1: reward}, "gro-bench")
            )
        batches.append(batch)
    return batches


class Database:
    """A migrated database with the catalog rows that a tree needs."""

    def __init__(self, url: str) -> None:
        migrate(url)
        self.engine: Engine = open_database(url)
        now = {"created_at": 0.0}
        model = {
            "fingerprint": "m",
            "source": "",
            "architecture": "",
            "vocab_size": 1000,
            "max_context": 4096,
            "tokenizer_fingerprint": "t",
            "eos_ids": [],
        }
        policy = {
            "id": "p",
            "model_fingerprint": "m",
            "temperature": 1.0,
            "top_p": 1.0,
            "top_k": 0,
            "max_new_tokens": TOKENS,
            "stop_ids": [],
            "prompting": {},
        }
        verifier = {"key": 1, "id": "v", "kind": "exact", "version": 1, "options": {}}
        with write(self.engine) as connection:
            connection.execute(insert(schema.model), model | now)
            connection.execute(insert(schema.policy), policy | now)
            connection.execute(insert(schema.verifier), verifier | now)
            question = {"id": "q", "fields": {}, "verifier_key": 1}
            connection.execute(insert(schema.question), question | now)

    def rows(self, table: schema.Table) -> list[dict[str, object]]:
        """Read a whole table, as parameters for an insert."""
        with read(self.engine) as connection:
            ordered = select(table).order_by(*table.primary_key)
            return [dict(row) for row in connection.execute(ordered).mappings()]

    def close(self) -> None:
        self.engine.dispose()


if __name__ == "__main__":
    main()
