"""Next-token distributions that were scored once, kept beside the tree.

A key is a 16-byte hash of all that determines the distribution: model, prompt, prefix and view. So
an entry never becomes wrong; it can only become longer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from sqlalchemy import (
    Connection,
    Engine,
    bindparam,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from unmask_server.database.connect import query, transact
from unmask_server.database.rows import AnyRow
from unmask_server.database.schema import distribution
from unmask_server.tree.packed import KEY_BYTES, bind_keys, packed_keys
from unmask_server.tree.types import StoredDistribution

_keys = packed_keys("keys")
_chosen = select(distribution).join(_keys, distribution.c.key == _keys.c.key)
_replace = (
    update(distribution)
    .where(distribution.c.key == bindparam("of_key"))
    .values({name: bindparam(name) for name in ("ids", "logprobs", "top_k", "complete")})
)


class DistributionStore:
    """The stored distributions. Thread-safe; several processes may write the same keys."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def get(self, keys: Iterable[bytes]) -> dict[bytes, StoredDistribution]:
        """Read what is there of `keys`, in one query; what is not there is left out."""
        wanted = _checked(keys)
        if not wanted:
            return {}
        rows = query(
            self._engine, lambda connection: connection.execute(_chosen, _bound(wanted)).all()
        )
        return {row.key: stored_distribution(row) for row in rows}

    def put(self, entries: Mapping[bytes, StoredDistribution]) -> None:
        """Store distributions; what is there already is merged by `merge`, so no id is ever lost.

        Raises:
            ValueError: a key has not 16 bytes, or a distribution is malformed or not finite;
                nothing is stored then.

        """
        # In order of the keys, so that two who put the same ones never wait for each other in turn.
        rows = [_row(key, entries[key]) for key in _checked(sorted(entries))]
        if rows:
            transact(self._engine, lambda connection: _put(connection, rows, entries))

    def put_once(self, entries: Mapping[bytes, StoredDistribution]) -> set[bytes]:
        """Store distributions that somebody states: all of them, or none.

        Returns:
            The keys that were not there. Those that were had the same values.

        Raises:
            DiffersError: a key has other values already.
            ValueError: as `put`.

        """
        rows = [_row(key, entries[key]) for key in _checked(sorted(entries))]
        if not rows:
            return set()
        return transact(self._engine, lambda connection: _put_once(connection, rows))

    def put_new(self, entries: Mapping[bytes, StoredDistribution]) -> set[bytes]:
        """Store those whose keys are not there; the others stay as they are, whatever they are.

        Returns:
            The keys that were not there.

        Raises:
            ValueError: as `put`.

        """
        rows = [_row(key, entries[key]) for key in _checked(sorted(entries))]
        if not rows:
            return set()
        return transact(self._engine, lambda connection: _insert(connection, rows))


class DiffersError(Exception):
    """A key has other values already."""

    def __init__(self, key: bytes) -> None:
        """Say which key."""
        super().__init__(key.hex())
        self.key = key


def merge(first: StoredDistribution, second: StoredDistribution) -> StoredDistribution:
    """Join two extracts of one distribution, `first` being the one that is stored.

    The ids of the one with the higher `top_k` (if equal, the one with more ids) come first; ids
    that only the other one has follow in their order. A log-probability that `first` has stays as
    it is to the last bit: answers that were computed from it must come out the same again.
    """
    base, other = first, second
    if (other.complete, other.top_k, len(other.ids)) > (base.complete, base.top_k, len(base.ids)):
        base, other = other, base
    missing = ~np.isin(other.ids, base.ids)
    if base is first and not missing.any():
        return base
    ids = np.concatenate([base.ids, other.ids[missing]])
    logprobs = np.concatenate([base.logprobs, other.logprobs[missing]])
    if base is not first:
        known = dict(zip(first.ids.tolist(), first.logprobs, strict=True))
        logprobs = np.array(
            [known.get(i, value) for i, value in zip(ids.tolist(), logprobs, strict=True)],
            dtype=np.float32,
        )
    return StoredDistribution(
        ids=ids,
        logprobs=logprobs,
        top_k=base.top_k,
        complete=base.complete,
    )


def _insert(connection: Connection, rows: list[dict[str, Any]]) -> set[bytes]:
    """Insert the rows that are new; their keys."""
    postgresql = connection.dialect.name == "postgresql"
    statement = (postgresql_insert if postgresql else sqlite_insert)(distribution)
    # Inserting first makes this wait for another transaction that is inserting the same key.
    return set(
        connection.scalars(statement.on_conflict_do_nothing().returning(distribution.c.key), rows)
    )


def _put_once(connection: Connection, rows: list[dict[str, Any]]) -> set[bytes]:
    inserted = _insert(connection, rows)
    given = {row["key"]: row for row in rows if row["key"] not in inserted}
    if given:
        for old in connection.execute(_chosen, _bound(list(given))).all():
            new = given[old.key]
            if any(getattr(old, name) != new[name] for name in ("ids", "logprobs", "complete")):
                raise DiffersError(old.key)
    return inserted


def _put(
    connection: Connection,
    rows: list[dict[str, Any]],
    entries: Mapping[bytes, StoredDistribution],
) -> None:
    inserted = _insert(connection, rows)
    present = [row["key"] for row in rows if row["key"] not in inserted]
    if not present:
        return
    locked = _chosen.order_by(distribution.c.key).with_for_update(of=distribution)
    changed = []
    for row in connection.execute(locked, _bound(present)).all():
        old = stored_distribution(row)
        merged = merge(old, entries[row.key])
        if merged is not old:
            columns = _row(row.key, merged)
            changed.append({"of_key": columns.pop("key"), **columns})
    if changed:
        connection.execute(_replace, changed)


def _checked(keys: Iterable[bytes]) -> list[bytes]:
    distinct = list(dict.fromkeys(keys))
    for key in distinct:
        if len(key) != KEY_BYTES:
            raise ValueError(f"a distribution's key has {KEY_BYTES} bytes, not {len(key)}")
    return distinct


def _bound(keys: list[bytes]) -> dict[str, Any]:
    return bind_keys("keys", keys)


def _row(key: bytes, entry: StoredDistribution) -> dict[str, Any]:
    ids = np.asarray(entry.ids, dtype="<i4")
    logprobs = np.asarray(entry.logprobs, dtype="<f4")
    if ids.ndim != 1 or ids.shape != logprobs.shape or not 0 <= entry.top_k <= len(ids):
        raise ValueError(
            f"a distribution has as many ids as log-probabilities and at least top_k of them: "
            f"{ids.shape}, {logprobs.shape}, {entry.top_k}"
        )
    if not np.isfinite(logprobs).all():
        raise ValueError("a distribution's log-probabilities must be finite")
    if len(np.unique(ids)) != len(ids):
        raise ValueError("a distribution names an id twice")
    return {
        "key": key,
        "ids": ids.tobytes(),
        "logprobs": logprobs.tobytes(),
        "top_k": entry.top_k,
        "complete": bool(entry.complete),
    }


def stored_distribution(row: AnyRow) -> StoredDistribution:
    """A row of `distribution`."""
    return StoredDistribution(
        ids=np.frombuffer(row.ids, dtype="<i4").astype(np.int32, copy=False),
        logprobs=np.frombuffer(row.logprobs, dtype="<f4").astype(np.float32, copy=False),
        top_k=row.top_k,
        complete=row.complete,
    )
