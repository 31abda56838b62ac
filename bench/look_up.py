"""How long a look-up takes in a large database over one of 1,000 rollouts.

Of one position, and of all 61 of a generation (one query each), on SQLite; trees of 1,000 rollouts.
Every tenth tree is filled by the store and looked up; the others are copies of its rows under other
ids, which the indexes cannot tell from trees of their own. `lookup_million` is this with a million
rollouts, which take some minutes to make.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, delete, func, insert, literal, select
from unmask_server.database import schema
from unmask_server.database.connect import write
from unmask_server.tree import TreeStore
from unmask_server.tree.ids import first_id, id_range

from bench.figures import figure, show
from bench.insert_rows import TOKENS, Database, make_batches

TREES = 200
EACH = 1000
COPIES = 9
"""Of every tree that the store fills."""
ROUNDS, LOOKS = 9, 60

Known = list[tuple[int, tuple[int, ...]]]


def fill(database: Database, trees: int) -> tuple[TreeStore, Known]:
    """Trees with rollouts; of each that the store filled, its id and one generation."""
    store = TreeStore(database.engine)
    known: Known = []
    for number in range(0, trees, COPIES + 1):
        names = [f"q{number + i}" for i in range(min(COPIES + 1, trees - number))]
        with write(database.engine) as connection:
            rows = [{"id": n, "fields": {}, "verifier_key": 1, "created_at": 0.0} for n in names]
            connection.execute(insert(schema.question), rows)
        first, *rest = (store.open_tree("p", name).id for name in names)
        store.activate_verifier(first, 1, lambda rollouts: [0.0] * len(rollouts))
        batch = make_batches(number)[0][:EACH]
        store.add_rollouts(first, batch)
        with write(database.engine) as connection:
            for other in rest:
                _copy(connection, first, other)
        known.append((first, batch[5].tokens))
    return store, known


def _copy(connection: Connection, source: int, to: int) -> None:
    """Fill an empty tree with the rows of another."""
    shift = first_id(to) - first_id(source)
    connection.execute(delete(schema.node).where(schema.node.c.tree_id == to))
    for table, key in ((schema.node, "id"), (schema.node_stat, "node_id"),
                       (schema.rollout, "id"), (schema.outcome, "rollout_id")):  # fmt: skip
        low, high = id_range(source)
        columns: dict[str, ColumnElement[Any]] = {c.name: c for c in table.c}
        for name in ("parent_id", "start_node_id", "end_node_id", key):
            if name in columns:
                columns[name] = columns[name] + shift
        if "tree_id" in columns:
            columns["tree_id"] = literal(to)
        if "uid" in columns:
            columns["uid"] = func.randomblob(16)
        rows = select(*columns.values()).where(table.c[key] >= low, table.c[key] < high)
        connection.execute(insert(table).from_select(list(columns), rows))


def milliseconds(store: TreeStore, known: Known, positions: Sequence[int], seed: int) -> float:
    """Of one look-up, on average over some trees."""
    rng = random.Random(seed)
    begun = time.perf_counter()
    for _ in range(LOOKS):
        tree, tokens = rng.choice(known)
        store.look_up(tree, tokens, positions, 1)
    return (time.perf_counter() - begun) / LOOKS * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trees", type=int, default=TREES)
    trees = parser.parse_args().trees
    compare(trees, lambda count: f"look_up_{count}_in_{trees * EACH}_rollouts")


def compare(trees: int, named: Callable[[int], str]) -> None:
    """Print a figure for each number of positions, named by it."""
    with tempfile.TemporaryDirectory() as folder:
        small = Database(f"sqlite:///{folder}/small.db")
        large = Database(f"sqlite:///{folder}/large.db")
        few, many = fill(small, 1), fill(large, trees)
        for positions in ([TOKENS // 2], list(range(TOKENS + 1))):
            ours, theirs = [], []
            for seed in range(ROUNDS):
                ours.append(milliseconds(*many, positions, seed))
                theirs.append(milliseconds(*few, positions, seed))
            name = named(len(positions))
            show(figure(name, "ms", ours, theirs, goal=1.5, direction="down"))
        small.close()
        large.close()


if __name__ == "__main__":
    main()
