"""How long a look-up takes in a database of 100,000 rollouts over one of 1,000.

Of one position, and of all 61 of a generation (one query each), on SQLite; trees of 1,000 rollouts.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Sequence

from sqlalchemy import insert
from unmask_server.database import schema
from unmask_server.database.connect import write
from unmask_server.tree import TreeStore

from bench.figures import figure, show
from bench.insert_rows import TOKENS, Database, make_batches

TREES = 100
EACH = 1000
ROUNDS, LOOKS = 9, 60

Known = list[tuple[int, tuple[int, ...]]]


def fill(database: Database, trees: int) -> tuple[TreeStore, Known]:
    """Trees with rollouts; of each its id and one generation."""
    store = TreeStore(database.engine)
    known: Known = []
    for k in range(trees):
        with write(database.engine) as connection:
            row = {"id": f"q{k}", "fields": {}, "verifier_key": 1, "created_at": 0.0}
            if k:
                connection.execute(insert(schema.question), row | {"id": f"q{k}"})
        tree = store.open_tree("p", f"q{k}" if k else "q").id
        store.activate_verifier(tree, 1, lambda rollouts: [0.0] * len(rollouts))
        batch = make_batches(k)[0][:EACH]
        store.add_rollouts(tree, batch)
        known.append((tree, batch[5].tokens))
    return store, known


def milliseconds(store: TreeStore, known: Known, positions: Sequence[int], seed: int) -> float:
    """Of one look-up, on average over some trees."""
    rng = random.Random(seed)
    begun = time.perf_counter()
    for _ in range(LOOKS):
        tree, tokens = rng.choice(known)
        store.look_up(tree, tokens, positions, 1)
    return (time.perf_counter() - begun) / LOOKS * 1e3


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        small = Database(f"sqlite:///{folder}/small.db")
        large = Database(f"sqlite:///{folder}/large.db")
        few, many = fill(small, 1), fill(large, TREES)
        for name, positions in (("look_up_1", [30]), (f"look_up_{TOKENS + 1}", range(TOKENS + 1))):
            ours, theirs = [], []
            for seed in range(ROUNDS):
                ours.append(milliseconds(*many, list(positions), seed))
                theirs.append(milliseconds(*few, list(positions), seed))
            show(figure(name, "ms", ours, theirs, goal=1.5, direction="down"))
        small.close()
        large.close()


if __name__ == "__main__":
    main()
