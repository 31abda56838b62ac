"""A process that adds batches of 20 rollouts to a tree and prints the first uid of each one stored.

python writer.py database-url tree-id seed batches
"""

from __future__ import annotations

import random
import sys

from unmask_server.database.connect import open_database
from unmask_server.tree import FINISH_STOP, NewRollout, TreeStore


def main(url: str, tree_id: int, seed: int, batches: int) -> None:
    store = TreeStore(open_database(url))
    rng = random.Random(seed)
    for number in range(batches):
        first = (seed + 1) * 10**9 + 20 * number
        batch = []
        for i in range(20):
            tokens = tuple(rng.randrange(3) for _ in range(rng.randrange(12)))
            forced = rng.randint(0, len(tokens))
            uid = (first + i).to_bytes(16, "big")
            batch.append(NewRollout(uid, tokens, forced, FINISH_STOP, {1: float(i % 2)}))
        result = store.add_rollouts(tree_id, batch)
        assert len(result.inserted) == 20
        print(result.inserted[0].hex(), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
