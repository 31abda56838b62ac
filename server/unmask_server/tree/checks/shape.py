"""The nodes of a tree: that they hang together, and that they bear the names of their prefixes.

Each node is checked against its parent alone, in one pass. Depths grow from the root on, so what
holds for every pair holds for every path.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, Connection, or_, select

from unmask_server.database.rows import AnyRow
from unmask_server.database.schema import node
from unmask_server.tree.checks.findings import Finding
from unmask_server.tree.checks.streams import stream
from unmask_server.tree.fingerprint import extend, seed_fingerprint
from unmask_server.tree.ids import first_id, id_range
from unmask_server.tree.tokens import TOKEN_BYTES, token_at, tokens_in


class Shape:
    """Ids, parents and depths of a tree's nodes, as arrays of shape (nodes,), by id."""

    def __init__(self, connection: Connection, tree_id: int) -> None:
        first, end = id_range(tree_id)
        wanted = select(node.c.id, node.c.parent_id, node.c.depth)
        rows = stream(connection, wanted.where(_within(first, end)).order_by(node.c.id))
        flat = np.fromiter(
            (value for id_, parent_id, depth in rows for value in (id_, parent_id or -1, depth)),
            dtype=np.int64,
        ).reshape(-1, 3)
        self.ids: NDArray[np.int64] = np.ascontiguousarray(flat[:, 0])
        self.depths: NDArray[np.int64] = np.ascontiguousarray(flat[:, 2])
        self.parents: NDArray[np.int64] = self.places(flat[:, 1])
        """Places in `ids`; -1 for none."""

    def places(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where `ids` are in the arrays, of their shape; -1 for what is not of this tree."""
        if not len(self.ids):
            return np.full(ids.shape, -1, dtype=np.int64)
        places = np.searchsorted(self.ids, ids)
        places[places == len(self.ids)] = 0
        return np.where(self.ids[places] == ids, places, -1)


def shape_findings(connection: Connection, ref: AnyRow) -> Iterator[Finding]:
    """Check every node of a tree against its parent."""
    first, end = id_range(ref.id)
    root_id = first_id(ref.id)

    def found(invariant: str, node_id: int, problem: str) -> Finding:
        return Finding(invariant, ref.id, f"node {node_id}", problem)

    outside = select(node).where(
        _within(first, end),
        or_(node.c.parent_id.is_(None), node.c.parent_id < first, node.c.parent_id >= end),
    )
    has_root = False
    for row in stream(connection, outside):
        if row.id != root_id:
            yield found("node.parent", row.id, f"its parent {row.parent_id} is not in the tree")
            continue
        has_root = True
        if row.parent_id is not None or row.depth != 0 or row.edge:
            yield found("tree.root", row.id, "the root has a parent, a depth or an edge")
        if row.fingerprint != seed_fingerprint(ref.policy_id, ref.question_id):
            yield found("node.fingerprint", row.id, "its fingerprint is wrong")
    if not has_root:
        yield found("tree.root", root_id, "there is no root")
    yield from _child_findings(connection, ref)


def _child_findings(connection: Connection, ref: AnyRow) -> Iterator[Finding]:
    first, end = id_range(ref.id)
    parent = node.alias("parent")
    pairs = (
        select(
            node.c.id,
            node.c.parent_id,
            node.c.depth,
            node.c.fingerprint,
            node.c.edge,
            parent.c.id.label("above_id"),
            parent.c.depth.label("above_depth"),
            parent.c.fingerprint.label("above_fingerprint"),
            parent.c.edge.label("above_edge"),
        )
        .select_from(node.outerjoin(parent, parent.c.id == node.c.parent_id))
        .where(node.c.parent_id >= first, node.c.parent_id < end)
        .order_by(node.c.parent_id, node.c.id)
    )
    at, name, heads = None, b"", set[bytes]()
    for row in stream(connection, pairs):
        if row.parent_id != at:
            at, heads = row.parent_id, set()
            name = _end_name(row) if row.above_id is not None else b""
        for invariant, problem in _problems(row, name, heads, first, end):
            yield Finding(invariant, ref.id, f"node {row.id}", problem)


def _problems(
    row: AnyRow, name: bytes, heads: set[bytes], first: int, end: int
) -> Iterator[tuple[str, str]]:
    if row.above_id is None or not first <= row.id < end:
        yield "node.parent", f"its parent {row.parent_id} is not in its tree"
        return
    if not row.edge or len(row.edge) % TOKEN_BYTES:
        yield "node.edge", f"its edge has {len(row.edge)} bytes"
        return
    if row.depth != row.above_depth + tokens_in(row.edge):
        yield (
            "node.depth",
            f"its depth is {row.depth}, which the parent's and its edge do not add up to",
        )
    head = token_at(row.edge, 0)
    if head in heads:
        yield "node.edge", f"another edge below node {row.parent_id} begins with the same token"
    heads.add(head)
    if row.fingerprint != extend(name, head)[0]:
        yield "node.fingerprint", "its fingerprint is wrong"


def _end_name(row: AnyRow) -> bytes:
    """The name of the prefix that ends at the parent."""
    further: bytes = row.above_edge[TOKEN_BYTES:]
    name: bytes = row.above_fingerprint
    return extend(name, further)[-1] if further else name


def _within(first: int, end: int) -> ColumnElement[bool]:
    return (node.c.id >= first) & (node.c.id < end)
