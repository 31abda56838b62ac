"""Reading from the database the part of a tree that a batch of rollouts touches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from sqlalchemy import Connection, bindparam, select

from unmask_server.database.rows import AnyRow
from unmask_server.database.schema import node, node_stat
from unmask_server.tree.fingerprint import extend
from unmask_server.tree.packed import bind_keys, packed_keys
from unmask_server.tree.radix import RadixNode, RadixTree, Stats
from unmask_server.tree.tokens import TOKEN_BYTES, shared_tokens
from unmask_server.tree.types import TreeCorruptError

_FIRST_WINDOW = 8
_LAST_WINDOW = 128

_keys = packed_keys("names")
_named_nodes = select(
    node.c.id,
    node.c.parent_id,
    node.c.fingerprint,
    node.c.depth,
    node.c.edge,
    node_stat.c.verifier_key,
    node_stat.c.n,
    node_stat.c.reward_sum,
    node_stat.c.truncated,
    node_stat.c.forced_n,
    node_stat.c.forced_reward_sum,
).select_from(
    _keys.join(
        node,
        (node.c.tree_id == bindparam("tree_id", type_=node.c.tree_id.type))
        & (node.c.fingerprint == _keys.c.key),
    ).outerjoin(node_stat, node_stat.c.node_id == node.c.id)
)


def load_touched(
    connection: Connection, tree_id: int, seed: bytes, next_id: int, paths: Iterable[bytes]
) -> RadixTree:
    """Load every node on the packed `paths`, and so all that inserting them may change.

    The names of all prefixes would find the nodes in one query, but most paths leave the tree early
    and hashing what follows would cost more than all the rest. So the paths are named in growing
    windows, each only as long as it stays in the tree.

    Raises:
        TreeCorruptError: the tree has no root, or a node is not below one of its own path.

    """
    rows = list(_read(connection, tree_id, [seed]))
    if not rows:
        raise TreeCorruptError(f"tree {tree_id} has no root")
    tree = RadixTree(_node(rows[0], None), next_id)
    by_id = {tree.root.id: tree.root}
    _add_stats(by_id, rows)
    # How far each path is known to be in the tree.
    reached = dict.fromkeys(paths, tree.root)
    window = _FIRST_WINDOW
    while reached:
        rows = list(_read(connection, tree_id, _names(reached, window)))
        for row in sorted(rows, key=lambda row: row.depth):
            if row.id not in by_id:
                parent = by_id.get(row.parent_id)
                if parent is None:
                    raise TreeCorruptError(f"node {row.id} is not below its path")
                by_id[row.id] = _node(row, parent)
                tree.attach(by_id[row.id])
        _add_stats(by_id, rows)
        reached = dict(_advance(reached, window))
        window = min(2 * window, _LAST_WINDOW)
    return tree


def _advance(reached: dict[bytes, RadixNode], window: int) -> Iterator[tuple[bytes, RadixNode]]:
    """Yield the paths that may go on in the tree beyond the window, and how far they are."""
    for path, start in reached.items():
        at = start
        while True:
            begin = TOKEN_BYTES * at.depth
            child = at.children.get(path[begin : begin + TOKEN_BYTES])
            if child is None or not path.startswith(child.edge, begin):
                break
            at = child
        if child is None and at.depth >= start.depth + window and begin < len(path):
            yield path, at


def _names(reached: dict[bytes, RadixNode], window: int) -> set[bytes]:
    """Name the next prefixes of each path; what paths share is hashed once."""
    names: set[bytes] = set()
    by_node: dict[RadixNode, set[bytes]] = {}
    for path, at in reached.items():
        begin = TOKEN_BYTES * at.depth
        by_node.setdefault(at, set()).add(path[begin : begin + TOKEN_BYTES * window])
    for at, stretches in by_node.items():
        chain = [at.name_at(at.depth)]
        previous = b""
        for stretch in sorted(stretches):
            shared = shared_tokens(previous, stretch)
            del chain[shared + 1 :]
            chain += extend(chain[-1], stretch[TOKEN_BYTES * shared :])
            names.update(chain[shared + 1 :])
            previous = stretch
    return names


def _read(connection: Connection, tree_id: int, names: Iterable[bytes]) -> Iterator[AnyRow]:
    yield from connection.execute(_named_nodes, {"tree_id": tree_id, **bind_keys("names", names)})


def _node(row: AnyRow, parent: RadixNode | None) -> RadixNode:
    return RadixNode(
        id=row.id,
        parent=parent,
        fingerprint=row.fingerprint,
        depth=row.depth,
        edge=row.edge,
        stats={},
        is_new=False,
    )


def _add_stats(by_id: dict[int, RadixNode], rows: list[AnyRow]) -> None:
    for row in rows:
        if row.verifier_key is not None:
            by_id[row.id].stats[row.verifier_key] = Stats(
                n=row.n,
                reward_sum=row.reward_sum,
                truncated=row.truncated,
                forced_n=row.forced_n,
                forced_reward_sum=row.forced_reward_sum,
                is_stored=True,
            )
