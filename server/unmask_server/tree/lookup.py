"""Counts at the prefixes of a trajectory, by one statement and without walking the tree.

Every prefix of the trajectory has a name (`fingerprint`), and the nodes whose edge begins with one
of its tokens are found by those names at once; so are their children where a position asks for
them. The edges' tokens then verify what the names found. The cost depends on the length of what is
asked for and on the children returned, not on the size of the tree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import (
    Connection,
    Integer,
    LargeBinary,
    bindparam,
    func,
    literal_column,
    select,
    type_coerce,
    union_all,
)

from unmask_server.database.packing import HEAD_BYTES, decode_tokens, first_token
from unmask_server.database.schema import node, node_stat, tree, tree_verifier
from unmask_server.tree.fingerprint import extend
from unmask_server.tree.packed import bind_keys, packed_keys
from unmask_server.tree.tokens import TOKEN_BYTES, pack, shared_tokens, token_at, tokens_in
from unmask_server.tree.types import (
    ChildCounts,
    NodeCounts,
    TreeCorruptError,
    TreeView,
    UnknownTreeError,
    VerifiersDifferError,
)

_Child = tuple[int, int, float, int, int, float]
"""The columns of `ChildCounts`."""


@dataclass(frozen=True, slots=True)
class _Edge:
    """A node on the path."""

    id: int
    parent_id: int | None
    depth: int
    tokens: bytes
    n: int
    reward_sum: float
    truncated: int


_tree_id = bindparam("tree_id", type_=tree.c.id.type)
_verifier_key = bindparam("verifier_key", type_=Integer)
_keys = packed_keys("names")
# As it is stored: of edges and of their heads.
_stored_edge = type_coerce(node.c.edge, LargeBinary)
_columns = (node.c.id, node.c.parent_id, node.c.depth, _stored_edge.label("edge"))

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
# Not as a join: SQLite, which keeps no statistics, might go through all nodes for it.
_below = node.c.parent_id.in_(select(_on_path.c.id).where(_wanted))
# Of a child only the first token matters, and its edge may be long.
_first_token_only = func.substr(
    _stored_edge, literal_column("1"), literal_column(str(HEAD_BYTES)), type_=LargeBinary
)
_found = union_all(
    select(_on_path, literal_column("1").label("is_on_path")),
    select(
        *_columns[:-1], _first_token_only.label("edge"), literal_column("0").label("is_on_path")
    ).where(_below),
).subquery("found")
_n = func.coalesce(node_stat.c.n, 0)
_reward_sum = func.coalesce(node_stat.c.reward_sum, 0.0)
_look_up = (
    select(
        tree.c.version,
        tree.c.rollouts,
        tree_verifier.c.verifier_key,
        _found.c.is_on_path,
        _found.c.id,
        _found.c.parent_id,
        _found.c.depth,
        _found.c.edge,
        _n,
        _reward_sum,
        func.coalesce(node_stat.c.truncated, 0),
        _n - func.coalesce(node_stat.c.forced_n, 0),
        _reward_sum - func.coalesce(node_stat.c.forced_reward_sum, 0.0),
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
    version, rollouts, active_key = rows[0][:3]
    if active_key is None:
        raise VerifiersDifferError(f"verifier {verifier_key} is not active on tree {tree_id}")
    on_path: list[_Edge] = []
    below: dict[int, list[_Child]] = {}
    # Unpacked by position: rows are many, and their attributes are slow.
    for _, _, _, is_on_path, id_, parent_id, depth, edge, n, rewards, truncated, *free in rows:
        if is_on_path:
            along = decode_tokens(edge)
            on_path.append(_Edge(id_, parent_id, depth, along, n, rewards, truncated))
        elif n > 0:
            if (token := first_token(edge)) is None:
                raise TreeCorruptError(f"the edge of node {id_} cannot be read")
            below.setdefault(parent_id, []).append((token, n, rewards, truncated, *free))
    for children in below.values():
        children.sort()
    nodes = _count(_verified_path(on_path, packed), below, positions)
    return TreeView(version, nodes, rollouts)


def _verified_path(rows: list[_Edge], packed: bytes) -> list[tuple[_Edge, int]]:
    """Put the nodes on the path in order, each with the depth to which its edge agrees with it.

    Only the last edge may agree in part.
    """
    path: list[tuple[_Edge, int]] = []
    parent_id, depth = None, 0
    for row in sorted(rows, key=lambda row: row.depth):
        begin = row.depth - tokens_in(row.tokens)
        if row.parent_id != parent_id or begin != depth:
            raise TreeCorruptError(f"node {row.id} is not below its path")
        agreed = begin + shared_tokens(row.tokens, packed[TOKEN_BYTES * begin :])
        if row.tokens and agreed == begin:
            raise TreeCorruptError(f"node {row.id} does not begin with its path's token")
        path.append((row, agreed))
        parent_id, depth = row.id, agreed if agreed == row.depth else -1
    return path


def _count(
    path: list[tuple[_Edge, int]], below: dict[int, list[_Child]], positions: Sequence[int]
) -> list[NodeCounts]:
    """Put the counts at each position together."""
    # Which node's edge holds the token before each position; index 0 is the root itself.
    edges: list[_Edge] = []
    for row, agreed in path:
        edges += [row] * (agreed - len(edges) + 1)
    children: list[_Child] = []
    ends = []
    for position in positions:
        if position < len(edges):
            children += _onward(edges[position], position, below)
        ends.append(len(children))
    # Arrays of all positions together, each of which gets its part: making arrays is what costs.
    columns = _arrays(children)
    nodes = []
    begin = 0
    for position, end in zip(positions, ends, strict=True):
        counts = ChildCounts(*[column[begin:end] for column in columns])
        begin = end
        if position < len(edges):
            row = edges[position]
            nodes.append(NodeCounts(position, row.n, row.reward_sum, row.truncated, counts))
        else:
            nodes.append(NodeCounts(position, 0, 0.0, 0, counts))
    return nodes


def _onward(edge: _Edge, position: int, below: dict[int, list[_Child]]) -> list[_Child]:
    """List how the rollouts go on from a position on an edge."""
    if position == edge.depth:
        return below.get(edge.id, [])
    if edge.n == 0:
        return []
    # In the middle of an edge: all go on along it, and of those valid none is forced here.
    at = tokens_in(edge.tokens) - (edge.depth - position)
    token = int.from_bytes(token_at(edge.tokens, at), "little")
    return [(token, edge.n, edge.reward_sum, edge.truncated, edge.n, edge.reward_sum)]


def _arrays(children: list[_Child]) -> list[NDArray[Any]]:
    types = (np.int32, np.int64, np.float64, np.int64, np.int64, np.float64)
    values = zip(*children, strict=True) if children else [()] * len(types)
    arrays = [np.array(column, dtype) for column, dtype in zip(values, types, strict=True)]
    # A difference of sums may miss zero, or the count, in its last digit.
    arrays[-1] = np.clip(arrays[-1], 0.0, arrays[-2])
    return arrays
