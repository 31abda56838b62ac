"""How fast rollouts are recorded, against inserting the same rows without thinking.

Value: rows a second, of all tables, through `TreeStore.add_rollouts`. Baseline: the rows that this
left behind, inserted into an empty database of the same kind by SQLAlchemy Core's bulk insertion,
one statement a table, in one transaction. Both pay for the same indexes, foreign keys and commit.

    python bench/insert_rows.py [database-url]

Without a URL a temporary SQLite file is used. A given database must be empty; it is emptied again.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import tempfile
import time

from sqlalchemy import Engine, insert, select
from unmask_server.database import schema
from unmask_server.database.connect import open_database, read, write
from unmask_server.database.migrate import migrate
from unmask_server.tree import FINISH_STOP, NewRollout, TreeStore

GOAL = 0.3
ROUNDS = 5
BATCHES = 2
ROLLOUTS = 2000
TOKENS = 60
TRAJECTORIES = 8
TREE_TABLES = (schema.node, schema.node_stat, schema.rollout, schema.outcome)


def main() -> None:
    url = sys.argv[1] if len(sys.argv) > 1 else None
    rates, baselines = [], []
    for number in range(ROUNDS):
        rate, baseline = measure(number, url)
        rates.append(rate)
        baselines.append(baseline)
    ratios = sorted(rate / baseline for rate, baseline in zip(rates, baselines, strict=True))
    print(
        json.dumps(
            {
                "name": "insert_rows",
                "value": round(statistics.median(rates)),
                "unit": "rows/s",
                "baseline": round(statistics.median(baselines)),
                "ratio": round(statistics.median(ratios), 3),
                "goal": GOAL,
                "direction": "up",
                "n": ROUNDS,
                "low": round(ratios[0], 3),
                "high": round(ratios[-1], 3),
            }
        )
    )


def measure(seed: int, url: str | None) -> tuple[float, float]:
    """Return the rows a second of the store and of the baseline, on a fresh database each."""
    batches = make_batches(seed)
    with tempfile.TemporaryDirectory() as folder:
        first = Database(url or f"sqlite:///{folder}/store.db")
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

        second = Database(url or f"sqlite:///{folder}/baseline.db")
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
    """A migrated database with the catalog rows that a tree needs; gone when it is closed."""

    def __init__(self, url: str) -> None:
        migrate(url)
        self._url = url
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
        migrate(self._url, "base")


if __name__ == "__main__":
    main()
