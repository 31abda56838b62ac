"""Rollouts with every outcome that they have, read out in order and merged in from elsewhere."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from sqlalchemy import Connection, Engine, select

from unmask_server.database.connect import query
from unmask_server.database.schema import distribution, outcome, rollout, tree
from unmask_server.tree.distributions import stored_distribution
from unmask_server.tree.regrade import store_outcomes
from unmask_server.tree.rollouts import rollout_rows, spell
from unmask_server.tree.types import StoredDistribution, StoredRollout, TreeRef

_CHUNK = 500


@dataclass(frozen=True, slots=True)
class Offered:
    """A rollout from elsewhere, as far as it must be the one of the same uid here."""

    digest: bytes
    """Of its tokens."""
    forced_depth: int
    outcomes: Mapping[int, float]
    """By verifier key, active ones or not."""


@dataclass(frozen=True, slots=True)
class Merged:
    """What `merge_offered` found of those that were there."""

    known: int
    """Rollouts that were there."""
    different: int
    """Of these: with other tokens. They stay as they are."""
    outcomes_added: int
    outcomes_different: int
    """Outcomes that are other numbers here. They stay as they are."""


class ShareReader:
    """Reads whole caches, a little at a time. Calls block, from any thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def trees(
        self, policy_id: str | None, question_ids: Sequence[str] | None, after_id: int, limit: int
    ) -> list[TreeRef]:
        """The next trees behind an id, of a policy and of questions if these are given."""
        wanted = select(tree).where(tree.c.id > after_id).order_by(tree.c.id).limit(limit)
        if policy_id is not None:
            wanted = wanted.where(tree.c.policy_id == policy_id)
        if question_ids is not None:
            wanted = wanted.where(tree.c.question_id.in_(question_ids))
        rows = query(self._engine, lambda c: c.execute(wanted).all())
        return [TreeRef(row.id, row.policy_id, row.question_id, row.version) for row in rows]

    def rollouts(self, tree_id: int, after_id: int, limit: int) -> list[StoredRollout]:
        """The next rollouts of a tree behind an id, with all of their outcomes."""
        return query(self._engine, partial(_rollouts, tree_id, after_id, limit))

    def distributions(self, after: bytes, limit: int) -> list[tuple[bytes, StoredDistribution]]:
        """The next distributions behind a key."""
        wanted = (
            select(distribution)
            .where(distribution.c.key > after)
            .order_by(distribution.c.key)
            .limit(limit)
        )
        rows = query(self._engine, lambda c: c.execute(wanted).all())
        return [(row.key, stored_distribution(row)) for row in rows]


def _rollouts(
    tree_id: int, after_id: int, limit: int, connection: Connection
) -> list[StoredRollout]:
    rows = list(connection.execute(rollout_rows(tree_id, after_id).limit(limit)))
    found = spell(connection, tree_id, rows)
    if found:
        given: defaultdict[int, dict[int, float]] = defaultdict(dict)
        span = outcome.c.rollout_id.between(found[0].id, found[-1].id)
        for row in connection.execute(select(outcome).where(span)):
            given[row.rollout_id][row.verifier_key] = row.reward
        for one in found:
            one.rewards.update(given[one.id])
    return found


def merge_offered(
    connection: Connection, tree_id: int, offered: Mapping[bytes, Offered], inserted: set[bytes]
) -> Merged:
    """Keep the outcomes of rollouts that `TreeStore.add_rollouts` has just been given.

    To be run in its transaction. Outcomes of active verifiers are there already; the others are
    added. Rollouts that were there before are compared.
    """
    known = different = added = contradicted = 0
    for uids in _chunks(list(offered)):
        wanted = select(
            rollout.c.uid, rollout.c.id, rollout.c.tree_id, rollout.c.digest, rollout.c.forced_depth
        ).where(rollout.c.uid.in_(uids))
        ids: dict[int, bytes] = {}
        for row in connection.execute(wanted):
            new = row.uid in inserted
            known += not new
            one = offered[row.uid]
            if (row.tree_id, row.digest, row.forced_depth) == (
                tree_id,
                one.digest,
                one.forced_depth,
            ):
                ids[row.id] = row.uid
            else:
                different += 1
        there = _outcomes(connection, ids)
        rows: defaultdict[int, list[tuple[int, float]]] = defaultdict(list)
        for rollout_id, uid in ids.items():
            for key, reward in offered[uid].outcomes.items():
                before = there[rollout_id].get(key)
                if before is None:
                    rows[key].append((rollout_id, reward))
                    added += uid not in inserted
                else:
                    contradicted += before != reward
        for key, pairs in sorted(rows.items()):
            store_outcomes(key, pairs, connection)
    return Merged(known, different, added, contradicted)


def _outcomes(connection: Connection, ids: Mapping[int, bytes]) -> dict[int, dict[int, float]]:
    there: dict[int, dict[int, float]] = {rollout_id: {} for rollout_id in ids}
    if ids:
        wanted = select(outcome).where(outcome.c.rollout_id.in_(list(ids)))
        for row in connection.execute(wanted):
            there[row.rollout_id][row.verifier_key] = row.reward
    return there


def _chunks(items: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    for start in range(0, len(items), _CHUNK):
        yield items[start : start + _CHUNK]
