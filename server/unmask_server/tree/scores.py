"""What models think of the tokens that rollouts sampled, scored once and kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, Engine, select
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from unmask_server.database.connect import query, transact
from unmask_server.database.rows import AnyRow
from unmask_server.database.schema import rollout_score
from unmask_server.tree.packed import KEY_BYTES

_CHUNK = 500


class RolloutScoreStore:
    """Log-probabilities of rollouts' sampled tokens, by rollout and source.

    A source is a 16-byte hash of a model and the prompt that it is given: all else that determines
    a score is the rollout. Thread-safe; several processes may write the same ones.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def get(self, rollout_ids: Sequence[int], source: bytes) -> dict[int, NDArray[np.float32]]:
        """Read what is there; each of shape (depth - forced_depth,), in nats."""
        found: dict[int, NDArray[np.float32]] = {}
        for start in range(0, len(rollout_ids), _CHUNK):
            ids = list(rollout_ids[start : start + _CHUNK])
            for row in query(self._engine, partial(_read, ids, source)):
                found[row.rollout_id] = np.frombuffer(row.logprobs, dtype="<f4").astype(np.float32)
        return found

    def put(self, scores: Mapping[int, NDArray[np.float32]], source: bytes) -> None:
        """Store scores; those that are there already stay as they are.

        Raises:
            ValueError: the source has not 16 bytes, or a score is not finite or above 0.

        """
        if len(source) != KEY_BYTES:
            raise ValueError(f"a source has {KEY_BYTES} bytes, not {len(source)}")
        for values in scores.values():
            if not (np.isfinite(values).all() and (values <= 0.0).all()):
                raise ValueError("log-probabilities must be finite and at most 0")
        rows = [
            {"rollout_id": key, "source": source, "logprobs": values.astype("<f4").tobytes()}
            for key, values in sorted(scores.items())
        ]
        if rows:
            transact(self._engine, partial(_write, rows))


def _read(ids: list[int], source: bytes, connection: Connection) -> Sequence[AnyRow]:
    wanted = select(rollout_score.c.rollout_id, rollout_score.c.logprobs).where(
        rollout_score.c.rollout_id.in_(ids), rollout_score.c.source == source
    )
    return connection.execute(wanted).all()


def _write(rows: list[dict[str, object]], connection: Connection) -> None:
    postgresql = connection.dialect.name == "postgresql"
    statement = (postgresql_insert if postgresql else sqlite_insert)(rollout_score)
    connection.execute(statement.on_conflict_do_nothing(), rows)
