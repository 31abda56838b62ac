"""Counts at the prefixes of a trajectory, by one statement and without walking the tree.

Every prefix of the trajectory has a name (`fingerprint`), and the nodes whose edge begins with one
of its tokens are found by those names at once; so are their children where a position asks for
them. The edges' tokens then verify what the names found. The cost depends on the length of what is
asked for and on the children returned, not on the size of the tree.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from sqlalchemy import (
    Connection,
    Integer,
    LargeBinary,
    bindparam,
    func,
    literal_column,
    select,
    union_all,
)

from unmask_server.database.rows import AnyRow
from unmask_server.database.schema import node, node_stat, tree, tree_verifier
from unmask_server.tree.fingerprint import extend
from unmask_server.tree.packed import bind_keys, packed_keys
from unmask_server.tree.tokens import TOKEN_BYTES, pack, shared_tokens, tokens_in, unpack
from unmask_server.tree.types import (
    ChildCounts,
    NodeCounts,
    TreeCorruptError,
    TreeView,
    UnknownTreeError,
    VerifiersDifferError,
)

_tree_id = bindparam("tree_id", type_=tree.c.id.type)
_verifier_key = bindparam("verifier_key", type_=Integer)
_keys = packed_keys("names")
_columns = (node.c.id, node.c.parent_id, node.c.depth, node.c.edge)

_on_path = (
    select(*_columns)
    .select_from(
        _keys.join(node, (node.c.tree_id == _tree_id) & (node.c.fingerprint == _keys.c.key))
    )
    .cte("on_path")
)
# One byte a depth, 1 where the children are wanted.
_wanted = func.substr(
    bindparam("wanted", type_=LargeBinary),
    _on_path.c.depth + literal_column("1"),
    literal_column("1"),
    type_=LargeBinary,
) == bindparam("yes", b"\x01", type_=LargeBinary)
_found = union_all(
    select(_on_path, literal_column("1").label("is_on_path")),
    select(*_columns, literal_column("0").label("is_on_path"))
    .select_from(_on_path.join(node, node.c.parent_id == _on_path.c.id))
    .where(_wanted),
).subquery("found")
_look_up = (
    select(
        tree.c.version,
        tree_verifier.c.verifier_key,
        _found,
        func.coalesce(node_stat.c.n, 0).label("n"),
        func.coalesce(node_stat.c.reward_sum, 0.0).label("reward_sum"),
        func.coalesce(node_stat.c.truncated, 0).label("truncated"),
        func.coalesce(node_stat.c.forced_n, 0).label("forced_n"),
        func.coalesce(node_stat.c.forced_reward_sum, 0.0).label("forced_reward_sum"),
    )
    .select_from(tree)
    .outerjoin(
        tree_verifier,
        (tree_verifier.c.tree_id == tree.c.id) & (tree_verifier.c.verifier_key == _verifier_key),
    )
    .join(_found, literal_column("1") == literal_column("1"))
    .outerjoin(
        node_stat,
        (node_stat.c.node_id == _found.c.id) & (node_stat.c.verifier_key == _verifier_key),
    )
    .where(tree.c.id == _tree_id)
)


def look_up(
    connection: Connection,
    tree_id: int,
    seed: bytes,
    tokens: Sequence[int],
    positions: Sequence[int],
    verifier_key: int,
) -> TreeView:
    """Do what `TreeStore.look_up` promises; `seed` is the tree's `seed_fingerprint`."""
    for position in positions:
        if not 0 <= position <= len(tokens):
            raise ValueError(f"position {position} is not in [0, {len(tokens)}]")
    reach = max(positions, default=0)
    # One token more than the deepest position is of no use: its edge is among the children there.
    packed = pack(tokens[:reach])
    wanted = bytearray(reach + 1)
    for position in positions:
        wanted[position] = 1
    rows = connection.execute(
        _look_up,
        {
            "tree_id": tree_id,
            "verifier_key": verifier_key,
            "wanted": bytes(wanted),
            **bind_keys("names", [seed, *extend(seed, packed)]),
        },
    ).all()
    if not rows:
        raise UnknownTreeError(f"there is no tree {tree_id}")
    if rows[0].verifier_key is None:
        raise VerifiersDifferError(f"verifier {verifier_key} is not active on tree {tree_id}")
    path = _verified_path([row for row in rows if row.is_on_path], packed)
    below: dict[int, list[AnyRow]] = {}
    for row in rows:
        if not row.is_on_path:
            below.setdefault(row.parent_id, []).append(row)
    return TreeView(rows[0].version, list(_count(path, below, packed, positions)))


def _verified_path(rows: list[AnyRow], packed: bytes) -> list[tuple[AnyRow, int]]:
    """Put the nodes on the path in order, each with the depth to which its edge agrees with it.

    Only the last edge may agree in part.
    """
    path: list[tuple[AnyRow, int]] = []
    parent_id, depth = None, 0
    for row in sorted(rows, key=lambda row: row.depth):
        begin = row.depth - tokens_in(row.edge)
        if row.parent_id != parent_id or begin != depth:
            raise TreeCorruptError(f"node {row.id} is not below its path")
        agreed = begin + shared_tokens(row.edge, packed[TOKEN_BYTES * begin :])
        path.append((row, agreed))
        parent_id, depth = row.id, agreed if agreed == row.depth else -1
    return path


def _count(
    path: list[tuple[AnyRow, int]],
    below: dict[int, list[AnyRow]],
    packed: bytes,
    positions: Iterable[int],
) -> Iterable[NodeCounts]:
    """Yield the counts at each position."""
    # Which node's edge holds the token before each position; index 0 is the root itself.
    edges: list[AnyRow] = []
    for row, agreed in path:
        edges += [row] * (agreed - len(edges) + 1)
    for position in positions:
        if position >= len(edges):
            yield NodeCounts(position, 0, 0.0, 0, _children([]))
            continue
        row = edges[position]
        if position == row.depth:
            children = [
                (_first_token(child.edge), child, child.forced_n, child.forced_reward_sum)
                for child in below.get(row.id, [])
            ]
        else:
            # In the middle of an edge: all go on along it, and of those valid none is forced here.
            at = TOKEN_BYTES * (position - row.depth)
            children = [(_first_token(row.edge[at:]), row, 0, 0.0)]
        yield NodeCounts(position, row.n, row.reward_sum, row.truncated, _children(children))


def _first_token(packed: bytes) -> int:
    return unpack(packed[:TOKEN_BYTES])[0]


def _children(rows: list[tuple[int, AnyRow, int, float]]) -> ChildCounts:
    """Make the arrays, from each child's token, edge and what of it is forced."""
    seen = sorted((row for row in rows if row[1].n > 0), key=lambda row: row[0])
    return ChildCounts(
        tokens=np.array([token for token, *_ in seen], dtype=np.int32),
        n=np.array([edge.n for _, edge, *_ in seen], dtype=np.int64),
        reward_sum=np.array([edge.reward_sum for _, edge, *_ in seen], dtype=np.float64),
        truncated=np.array([edge.truncated for _, edge, *_ in seen], dtype=np.int64),
        free_n=np.array([edge.n - forced for _, edge, forced, _ in seen], dtype=np.int64),
        free_reward_sum=np.array(
            [edge.reward_sum - forced for _, edge, _, forced in seen], dtype=np.float64
        ),
    )
