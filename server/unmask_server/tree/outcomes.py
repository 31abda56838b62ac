"""Outcomes by themselves: read, counted, and given from outside."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import Connection, Engine, delete, func, insert, select, update

from unmask_server.database.connect import query, transact
from unmask_server.database.rows import AnySelect
from unmask_server.database.schema import (
    node_stat,
    outcome,
    rollout,
    trajectory_outcome,
    tree,
    tree_verifier,
)
from unmask_server.tree.ids import first_id, id_range
from unmask_server.tree.insert import lock_tree
from unmask_server.tree.regrade import lacks_outcome, store_outcomes
from unmask_server.tree.rollouts import rollout_rows, spell
from unmask_server.tree.types import StoredRollout

_CHUNK = 500
_TRUST = 4.0
_LEAST_DISPERSION = 1e-3


class UnknownRolloutError(LookupError):
    """There is no rollout of that uid."""


class OutcomeDiffersError(ValueError):
    """A generation has another outcome already."""


@dataclass(frozen=True, slots=True)
class Moments:
    """Rewards of some rollouts."""

    n: int
    total: float
    squares: float
    """Sum of their squares."""

    @property
    def dispersion(self) -> float:
        """Their variance over that of rewards of 0 and 1 with the same mean, in (0, 1].

        The dispersion of a quasi-binomial model (Wedderburn 1974): with it, n rewards tell as much
        of their mean as n / dispersion outcomes of 0 and 1. It is 1 for those. A few rollouts' own
        is not trusted: `_TRUST` outcomes of 0 and 1 are added.
        """
        if self.n == 0:
            return 1.0
        mean = self.total / self.n
        most = mean * (1.0 - mean)
        if most <= _LEAST_DISPERSION:
            return 1.0
        spread = max(0.0, self.squares - self.n * mean**2)
        found = (spread + _TRUST * most) / ((self.n - 1 + _TRUST) * most)
        return min(1.0, max(_LEAST_DISPERSION, found))


class OutcomeStore:
    """Outcomes of rollouts by verifiers, active or not. Calls block, from any thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def read(self, verifier_key: int, first: int, last: int) -> dict[int, float]:
        """The outcomes of rollouts with ids from `first` to `last`; those without are left out."""
        wanted = (
            select(outcome.c.rollout_id, outcome.c.reward)
            .where(outcome.c.verifier_key == verifier_key)
            .where(outcome.c.rollout_id.between(first, last))
        )
        return query(self._engine, lambda c: dict(c.execute(wanted).tuples().all()))

    def of_rollout(self, uid: bytes, verifier_key: int) -> float | None:
        """The outcome of one rollout; None if it has none."""
        wanted = (
            select(outcome.c.reward)
            .join(rollout, rollout.c.id == outcome.c.rollout_id)
            .where(rollout.c.uid == uid, outcome.c.verifier_key == verifier_key)
        )
        found: float | None = query(self._engine, lambda c: c.scalar(wanted))
        return found

    def moments(
        self, tree_id: int, verifier_key: int, number: int, *, free: bool = False
    ) -> Moments:
        """Of a tree's first `number` rollouts; or of the free ones among them, the root's."""
        first = first_id(tree_id)
        wanted = (
            select(outcome.c.reward, func.count())
            .where(outcome.c.verifier_key == verifier_key)
            .where(outcome.c.rollout_id >= first, outcome.c.rollout_id < first + number)
            .group_by(outcome.c.reward)
        )
        if free:
            wanted = wanted.join(rollout, rollout.c.id == outcome.c.rollout_id).where(
                rollout.c.forced_depth == 0
            )
        rows = query(self._engine, lambda c: c.execute(wanted).tuples().all())
        return Moments(
            n=sum(count for _, count in rows),
            total=math.fsum(count * reward for reward, count in rows),
            squares=math.fsum(count * reward**2 for reward, count in rows),
        )

    def digests(self, uids: Sequence[bytes]) -> dict[bytes, bytes]:
        """By uid: the digest of a rollout's tokens; those that are not there are left out."""
        found: dict[bytes, bytes] = {}
        for chunk in _chunks(uids):
            wanted = select(rollout.c.uid, rollout.c.digest).where(rollout.c.uid.in_(chunk))
            found |= query(self._engine, partial(_pairs, wanted))
        return found

    def lacking(self, tree_id: int, verifier_key: int) -> int:
        """How many rollouts of a tree have no outcome of a verifier."""
        first, beyond = id_range(tree_id)
        wanted = (
            select(func.count())
            .select_from(rollout)
            .where(rollout.c.id >= first, rollout.c.id < beyond)
            .where(lacks_outcome(verifier_key))
        )
        return int(query(self._engine, lambda c: c.scalar(wanted)) or 0)

    def rollouts(
        self, tree_id: int, after_id: int, limit: int, lacking_key: int | None
    ) -> list[StoredRollout]:
        """The next `limit` rollouts behind an id; given a key, those that lack its outcome."""
        wanted = rollout_rows(tree_id, after_id).limit(limit)
        if lacking_key is not None:
            wanted = wanted.where(lacks_outcome(lacking_key))
        return query(self._engine, lambda c: spell(c, tree_id, list(c.execute(wanted))))

    def put(
        self, verifier_key: int, rollouts: Mapping[bytes, float], trajectories: Mapping[str, float]
    ) -> int:
        """Keep outcomes of rollouts, by uid, and of submitted trajectories, by id: all or none.

        Returns:
            How many are new.

        Raises:
            UnknownRolloutError: no such rollout; its argument is the uid.
            OutcomeDiffersError: it has another outcome; its argument is the uid or the id.

        """
        work = partial(_put, verifier_key, rollouts, trajectories)
        return transact(self._engine, work)

    def deactivate(self, tree_id: int, verifier_keys: Iterable[int]) -> None:
        """Let rollouts be added to a tree without outcomes of some verifiers.

        Their counts go, the outcomes stay: once the new rollouts have theirs, the verifiers can be
        activated again.

        Raises:
            UnknownTreeError: there is no such tree.

        """
        transact(self._engine, partial(_deactivate, tree_id, sorted(verifier_keys)))


def _deactivate(tree_id: int, keys: Sequence[int], connection: Connection) -> None:
    ref = lock_tree(connection, tree_id)
    gone = connection.execute(
        delete(tree_verifier).where(
            tree_verifier.c.tree_id == tree_id, tree_verifier.c.verifier_key.in_(keys)
        )
    )
    if not gone.rowcount:
        return
    first, beyond = id_range(tree_id)
    connection.execute(
        delete(node_stat).where(
            node_stat.c.node_id >= first,
            node_stat.c.node_id < beyond,
            node_stat.c.verifier_key.in_(keys),
        )
    )
    connection.execute(update(tree).where(tree.c.id == tree_id), {"version": ref.version + 1})


def _put(
    key: int,
    rollouts: Mapping[bytes, float],
    trajectories: Mapping[str, float],
    connection: Connection,
) -> int:
    ids: dict[bytes, int] = {}
    for chunk in _chunks(list(rollouts)):
        named = select(rollout.c.uid, rollout.c.id).where(rollout.c.uid.in_(chunk))
        ids |= dict(connection.execute(named).tuples().all())
    for uid in rollouts:
        if uid not in ids:
            raise UnknownRolloutError(uid)
    before = _outcomes(connection, key, list(ids.values()))
    new = [(ids[uid], reward) for uid, reward in rollouts.items() if ids[uid] not in before]
    if new:
        store_outcomes(key, new, connection)
    # Read again: another client may have been faster.
    kept = _outcomes(connection, key, list(ids.values()))
    for uid, reward in rollouts.items():
        if kept[ids[uid]] != reward:
            raise OutcomeDiffersError(uid)
    return len(new) + _put_trajectories(key, trajectories, connection)


def _put_trajectories(key: int, given: Mapping[str, float], connection: Connection) -> int:
    there: dict[str, float] = {}
    columns = trajectory_outcome.c
    for chunk in _chunks(list(given)):
        known = select(columns.trajectory_id, columns.reward).where(
            columns.verifier_key == key, columns.trajectory_id.in_(chunk)
        )
        there |= dict(connection.execute(known).tuples().all())
    for name, reward in given.items():
        if there.get(name, reward) != reward:
            raise OutcomeDiffersError(name)
    new = [
        {"trajectory_id": name, "verifier_key": key, "reward": reward}
        for name, reward in given.items()
        if name not in there
    ]
    if new:
        connection.execute(insert(trajectory_outcome), new)
    return len(new)


def _outcomes(connection: Connection, key: int, ids: Sequence[int]) -> dict[int, float]:
    found: dict[int, float] = {}
    for chunk in _chunks(ids):
        wanted = select(outcome.c.rollout_id, outcome.c.reward).where(
            outcome.c.verifier_key == key, outcome.c.rollout_id.in_(chunk)
        )
        found |= dict(connection.execute(wanted).tuples().all())
    return found


def _pairs(wanted: AnySelect, connection: Connection) -> dict[bytes, bytes]:
    return dict(connection.execute(wanted).tuples().all())


def _chunks(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), _CHUNK):
        yield items[start : start + _CHUNK]
