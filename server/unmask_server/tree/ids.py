"""How nodes and rollouts are numbered: ``tree_id * 2**32`` plus their number within the tree.

So an id is known before its row is written (the tree's own counters give the numbers, under its
lock), and the rows of one tree lie together.
"""

from __future__ import annotations

_SHIFT = 32


def first_id(tree_id: int) -> int:
    """Return the id numbered zero: the root's, among nodes."""
    return tree_id << _SHIFT


def id_range(tree_id: int) -> tuple[int, int]:
    """Return the first id of a tree and the first one beyond it."""
    return tree_id << _SHIFT, (tree_id + 1) << _SHIFT
