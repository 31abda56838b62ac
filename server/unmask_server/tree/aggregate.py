"""All statistics of a tree from its rollouts, at once: for a new verifier, and to check the old.

A rollout counts at its end node and at every node above it, up to but without its start node (and
at the root if nothing was forced). So each one adds at its end and subtracts at its start, and sums
over subtrees do the rest: the cost is that of the nodes plus the rollouts, however deep they are.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Connection, select

from unmask_server.database.schema import node, outcome, rollout
from unmask_server.tree.ids import id_range
from unmask_server.tree.radix import Stats
from unmask_server.tree.types import FINISH_LENGTH


@dataclass(frozen=True, slots=True)
class Graded:
    """What the statistics need of a rollout."""

    start_node_id: int
    end_node_id: int
    forced_depth: int
    truncated: int
    reward: float


def read_shape(connection: Connection, tree_id: int) -> dict[int, int | None]:
    """Read every node of a tree with its parent; the root's is None."""
    rows = connection.execute(select(node.c.id, node.c.parent_id).where(node.c.tree_id == tree_id))
    return {row.id: row.parent_id for row in rows}


def read_graded(connection: Connection, tree_id: int, verifier_key: int) -> list[Graded]:
    """Read every rollout of a tree that has an outcome under a verifier."""
    first, end = id_range(tree_id)
    rows = connection.execute(
        select(
            rollout.c.start_node_id,
            rollout.c.end_node_id,
            rollout.c.forced_depth,
            rollout.c.finish,
            outcome.c.reward,
        )
        .join(outcome, outcome.c.rollout_id == rollout.c.id)
        .where(outcome.c.verifier_key == verifier_key)
        .where(rollout.c.id >= first, rollout.c.id < end)
    )
    return [
        Graded(start, end_, forced, int(finish == FINISH_LENGTH), reward)
        for start, end_, forced, finish, reward in rows
    ]


def aggregate(shape: dict[int, int | None], rollouts: Iterable[Graded]) -> dict[int, Stats]:
    """Compute the statistics of every node that a rollout is valid at.

    Raises:
        KeyError: a rollout names a node that `shape` lacks.

    """
    order, children = _preorder(shape)
    number = {node_id: i for i, node_id in enumerate(order)}
    child_numbers = {at: [number[child] for child in below] for at, below in children.items()}
    sums = {node_id: Stats() for node_id in order}
    for row in rollouts:
        _add(sums[row.end_node_id], row, +1)
        if row.forced_depth == 0:
            continue
        _add(sums[row.start_node_id], row, -1)
        # The child of the start that leads to the end is the last numbered not beyond it.
        at = bisect_right(child_numbers[row.start_node_id], number[row.end_node_id]) - 1
        first = sums[children[row.start_node_id][at]]
        first.forced_n += 1
        first.forced_reward_sum += row.reward
    for node_id in reversed(order):
        parent_id = shape[node_id]
        if parent_id is not None:
            above, stats = sums[parent_id], sums[node_id]
            above.n += stats.n
            above.reward_sum += stats.reward_sum
            above.truncated += stats.truncated
    for stats in sums.values():
        # What was added and subtracted again may miss zero, or the count, in its last digit.
        stats.reward_sum = min(max(stats.reward_sum, 0.0), float(stats.n))
    return {node_id: stats for node_id, stats in sums.items() if stats.n}


def _add(stats: Stats, row: Graded, sign: int) -> None:
    stats.n += sign
    stats.reward_sum += sign * row.reward
    stats.truncated += sign * row.truncated


def _preorder(shape: dict[int, int | None]) -> tuple[list[int], dict[int, list[int]]]:
    """List the nodes, each before its children, and each one's children in that order."""
    children: dict[int, list[int]] = {node_id: [] for node_id in shape}
    order: list[int] = []
    stack: list[int] = []
    for node_id, parent_id in shape.items():
        if parent_id is None:
            stack.append(node_id)
        else:
            children[parent_id].append(node_id)
    while stack:
        node_id = stack.pop()
        order.append(node_id)
        stack += reversed(children[node_id])
    return order, children
