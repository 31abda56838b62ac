"""Recording a batch of rollouts: one transaction, prepared in memory, written in bulk."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import (
    Connection,
    bindparam,
    select,
    update,
)

from unmask_server.database.bulk import insert_all
from unmask_server.database.rows import AnyRow
from unmask_server.database.schema import (
    node,
    node_stat,
    outcome,
    rollout,
    tree,
    tree_verifier,
)
from unmask_server.tree.fingerprint import digest, seed_fingerprint
from unmask_server.tree.ids import first_id
from unmask_server.tree.load import load_touched
from unmask_server.tree.packed import bind_keys, packed_keys
from unmask_server.tree.radix import RadixNode, RadixTree, Stats
from unmask_server.tree.types import (
    FINISH_LENGTH,
    AddResult,
    NewRollout,
    UnknownTreeError,
    VerifiersDifferError,
)

_uids = packed_keys("uids")
_known_uids = select(rollout.c.uid).join(_uids, rollout.c.uid == _uids.c.key)

_move_node = (
    update(node)
    .where(node.c.id == bindparam("moved_id"))
    .values({name: bindparam(name) for name in ("parent_id", "fingerprint", "edge")})
)
_change_stats = (
    update(node_stat)
    .where(node_stat.c.node_id == bindparam("of_node"))
    .where(node_stat.c.verifier_key == bindparam("of_verifier"))
    .values(
        {
            name: bindparam(name)
            for name in ("n", "reward_sum", "truncated", "forced_n", "forced_reward_sum")
        }
    )
)


def lock_tree(connection: Connection, tree_id: int) -> AnyRow:
    """Take the tree for this transaction: no other one changes it before this one ends.

    On SQLite the write transaction itself has done that already.

    Raises:
        UnknownTreeError: there is none.

    """
    row = connection.execute(select(tree).where(tree.c.id == tree_id).with_for_update()).first()
    if row is None:
        raise UnknownTreeError(f"there is no tree {tree_id}")
    return row


def active_verifiers(connection: Connection, tree_id: int) -> set[int]:
    """Read by which verifiers every rollout of the tree is graded."""
    keys = select(tree_verifier.c.verifier_key).where(tree_verifier.c.tree_id == tree_id)
    return set(connection.scalars(keys))


def add_rollouts(
    connection: Connection,
    tree_id: int,
    rollouts: Sequence[NewRollout],
    packed: Sequence[bytes],
    then: Callable[[Connection, AddResult], None] | None,
) -> AddResult:
    """Do what `TreeStore.add_rollouts` promises; `packed` are the rollouts' tokens."""
    ref = lock_tree(connection, tree_id)
    active = active_verifiers(connection, tree_id)
    for new in rollouts:
        if new.rewards.keys() != active:
            raise VerifiersDifferError(
                f"rewards are needed under the verifiers {sorted(active)} of tree {tree_id}, "
                f"given under {sorted(new.rewards)}"
            )
    fresh, duplicates = _tell_apart(connection, rollouts, packed)
    version = ref.version
    if fresh:
        version += 1
        _insert(connection, ref, fresh)
    sampled = sum(len(new.tokens) - new.forced_depth for new, _ in fresh)
    result = AddResult([new.uid for new, _ in fresh], duplicates, version, sampled)
    if then is not None:
        then(connection, result)
    return result


def _tell_apart(
    connection: Connection, rollouts: Sequence[NewRollout], packed: Sequence[bytes]
) -> tuple[list[tuple[NewRollout, bytes]], list[bytes]]:
    uids = [new.uid for new in rollouts]
    seen = set(connection.scalars(_known_uids, bind_keys("uids", uids)))
    fresh, duplicates = [], []
    for new, tokens in zip(rollouts, packed, strict=True):
        if new.uid in seen:
            duplicates.append(new.uid)
        else:
            fresh.append((new, tokens))
            seen.add(new.uid)
    return fresh, duplicates


def _insert(connection: Connection, ref: AnyRow, fresh: list[tuple[NewRollout, bytes]]) -> None:
    base = first_id(ref.id)
    radix = load_touched(
        connection,
        ref.id,
        seed_fingerprint(ref.policy_id, ref.question_id),
        base + ref.nodes,
        (tokens for _, tokens in fresh),
    )
    now = float(int(time.time()))
    rollout_rows: list[dict[str, Any]] = []
    outcome_rows: list[dict[str, Any]] = []
    sampled = 0
    for rollout_id, (new, tokens) in enumerate(fresh, start=base + ref.rollouts):
        start, end = radix.insert(
            tokens, new.forced_depth, int(new.finish == FINISH_LENGTH), new.rewards
        )
        sampled += len(new.tokens) - new.forced_depth
        rollout_rows.append(
            {
                "id": rollout_id,
                "uid": new.uid,
                "tree_id": ref.id,
                "start_node_id": start.id,
                "end_node_id": end.id,
                "forced_depth": new.forced_depth,
                "depth": len(new.tokens),
                "digest": digest(tokens),
                "finish": new.finish,
                "growth_id": new.growth_id,
                "created_at": now,
            }
        )
        outcome_rows += [
            {"rollout_id": rollout_id, "verifier_key": key, "reward": float(reward)}
            for key, reward in new.rewards.items()
        ]
    _write_nodes(connection, ref.id, radix)
    insert_all(connection, rollout, rollout_rows)
    insert_all(connection, outcome, outcome_rows)
    connection.execute(
        update(tree).where(tree.c.id == ref.id),
        {
            "version": ref.version + 1,
            "nodes": radix.next_id - base,
            "rollouts": ref.rollouts + len(fresh),
            "tokens": ref.tokens + sampled,
        },
    )


def _write_nodes(connection: Connection, tree_id: int, radix: RadixTree) -> None:
    moved, new_nodes, changed_stats, new_stats = [], [], [], []
    for at in radix.nodes:
        if at.is_new:
            new_nodes.append(_node_row(tree_id, at))
            new_stats += [stat_row(at.id, key, stats) for key, stats in at.stats.items()]
            continue
        if at.moved:
            moved.append(
                {
                    "moved_id": at.id,
                    "parent_id": at.parent.id if at.parent else None,
                    "fingerprint": at.fingerprint,
                    "edge": at.edge,
                }
            )
        if at.counted:
            for key, stats in at.stats.items():
                if stats.is_stored:
                    row = stat_row(at.id, key, stats)
                    row["of_node"], row["of_verifier"] = row.pop("node_id"), row.pop("verifier_key")
                    changed_stats.append(row)
                else:
                    new_stats.append(stat_row(at.id, key, stats))
    # Moved nodes first: the new node above takes over the fingerprint of the one that was cut.
    if moved:
        connection.execute(_move_node, moved)
    insert_all(connection, node, new_nodes)
    if changed_stats:
        connection.execute(_change_stats, changed_stats)
    insert_all(connection, node_stat, new_stats)


def _node_row(tree_id: int, at: RadixNode) -> dict[str, Any]:
    return {
        "id": at.id,
        "tree_id": tree_id,
        "parent_id": at.parent.id if at.parent else None,
        "fingerprint": at.fingerprint,
        "depth": at.depth,
        "edge": at.edge,
    }


def stat_row(node_id: int, verifier_key: int, stats: Stats) -> dict[str, Any]:
    """Make the row of `node_stat`."""
    return {
        "node_id": node_id,
        "verifier_key": verifier_key,
        "n": stats.n,
        "reward_sum": stats.reward_sum,
        "truncated": stats.truncated,
        "forced_n": stats.forced_n,
        "forced_reward_sum": stats.forced_reward_sum,
    }
