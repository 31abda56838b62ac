"""Trajectories in the database."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from sqlalchemy import Connection, Engine, Row, Select, insert, select, tuple_

from unmask_server.catalog.errors import NotFound
from unmask_server.catalog.rows import pack_tokens, trajectory_of
from unmask_server.catalog.types import Trajectory
from unmask_server.database.connect import query, transact
from unmask_server.database.schema import question, trajectory, trajectory_outcome

_CHUNK = 500


class TrajectoryStore:
    """Trajectory rows. Synchronous: called from threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add(self, new: Trajectory, connection: Connection | None = None) -> Trajectory:
        """Keep a trajectory with its rewards; one of that id that is there stays as it is."""
        if connection is None:
            transact(self._engine, lambda c: _add(c, new))
            return self.get(new.id)
        _add(connection, new)
        return new

    def add_many(self, new: Sequence[Trajectory]) -> None:
        """As `add`, for many: all or none."""

        def add_all(connection: Connection) -> None:
            for one in new:
                _add(connection, one)

        if new:
            transact(self._engine, add_all)

    def get(self, trajectory_id: str) -> Trajectory:
        """One trajectory. Raises NotFound."""
        found = self.find([trajectory_id])
        if trajectory_id not in found:
            raise NotFound("trajectory", trajectory_id)
        return found[trajectory_id]

    def find(self, ids: Sequence[str]) -> dict[str, Trajectory]:
        """Those of the ids that there are."""
        found: dict[str, Trajectory] = {}
        for start in range(0, len(ids), _CHUNK):
            wanted = select(trajectory).where(trajectory.c.id.in_(ids[start : start + _CHUNK]))
            found.update((t.id, t) for t in query(self._engine, partial(_read, wanted)))
        return found

    def existing(self, ids: Sequence[str]) -> set[str]:
        """Which of the ids there are; nothing of them is read. At most some hundred at once."""
        wanted = select(trajectory.c.id).where(trajectory.c.id.in_(ids))
        return set(query(self._engine, lambda c: c.scalars(wanted).all()))

    def page(
        self,
        *,
        policy_id: str | None,
        question_id: str | None,
        correct: bool | None,
        size: int,
        after: tuple[float, str] | None,
    ) -> list[Trajectory]:
        """A page, oldest first; `after` is (created_at, id) of the last one of the page before."""
        wanted = select(trajectory).order_by(trajectory.c.created_at, trajectory.c.id).limit(size)
        if policy_id is not None:
            wanted = wanted.where(trajectory.c.policy_id == policy_id)
        if question_id is not None:
            wanted = wanted.where(trajectory.c.question_id == question_id)
        if after is not None:
            wanted = wanted.where(tuple_(trajectory.c.created_at, trajectory.c.id) > tuple_(*after))
        if correct is not None:
            reward = trajectory_outcome.c.reward
            wanted = (
                wanted.join(question, question.c.id == trajectory.c.question_id)
                .join(
                    trajectory_outcome,
                    (trajectory_outcome.c.trajectory_id == trajectory.c.id)
                    & (trajectory_outcome.c.verifier_key == question.c.verifier_key),
                )
                .where(reward > 0.5 if correct else reward <= 0.5)
            )
        return query(self._engine, partial(_read, wanted))

    def record_outcome(self, trajectory_id: str, verifier_key: int, reward: float) -> None:
        """Keep what a verifier gave; what it gave before stays."""

        def put(connection: Connection) -> None:
            there = select(trajectory_outcome.c.reward).where(
                trajectory_outcome.c.trajectory_id == trajectory_id,
                trajectory_outcome.c.verifier_key == verifier_key,
            )
            if connection.execute(there).first() is None:
                connection.execute(
                    insert(trajectory_outcome).values(
                        trajectory_id=trajectory_id, verifier_key=verifier_key, reward=reward
                    )
                )

        transact(self._engine, put)


def _add(connection: Connection, new: Trajectory) -> None:
    there = select(trajectory.c.id).where(trajectory.c.id == new.id)
    if connection.execute(there).first() is not None:
        return
    connection.execute(
        insert(trajectory).values(
            id=new.id,
            policy_id=new.policy_id,
            question_id=new.question_id,
            tokens=pack_tokens(new.tokens),
            finish=new.finish,
            seed=new.seed,
            ordinal=new.ordinal,
            rollout_uid=new.rollout_uid,
            created_at=new.created_at,
        )
    )
    if new.rewards:
        connection.execute(
            insert(trajectory_outcome),
            [
                {"trajectory_id": new.id, "verifier_key": key, "reward": reward}
                for key, reward in new.rewards.items()
            ],
        )


def _read(wanted: Select[Any], connection: Connection) -> list[Trajectory]:
    rows: list[Row[Any]] = list(connection.execute(wanted))
    rewards = _rewards(connection, [row.id for row in rows])
    return [trajectory_of(row._mapping, rewards.get(row.id, {})) for row in rows]


def _rewards(connection: Connection, ids: Iterable[str]) -> dict[str, dict[int, float]]:
    wanted = select(trajectory_outcome).where(trajectory_outcome.c.trajectory_id.in_(list(ids)))
    found: dict[str, dict[int, float]] = {}
    for row in connection.execute(wanted):
        found.setdefault(row.trajectory_id, {})[row.verifier_key] = row.reward
    return found
