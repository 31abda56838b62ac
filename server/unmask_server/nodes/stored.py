"""Stored teachers: distributions that were put, and no model."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unmask_server.catalog import Catalog, check_token_ids
from unmask_server.catalog.errors import AlreadyExists, InvalidArgument
from unmask_server.catalog.types import Question, Teacher
from unmask_server.diagnosis import with_spread_rest
from unmask_server.engines.base import ZERO_LOGPROB
from unmask_server.nodes.distributions import Distribution
from unmask_server.nodes.resolve import NodeSet
from unmask_server.reasons import Reason
from unmask_server.tree import DiffersError, DistributionStore, StoredDistribution

FloatArray = NDArray[np.float64]

MAX_LISTED = 1000
"""Tokens that are listed for a node: each is a candidate there."""
MAX_SUM = 1.0 + 1e-3
"""What their probabilities may add up to: trainers round them, to bfloat16 at worst."""


@dataclass(frozen=True, slots=True)
class Listed:
    """What somebody says that a teacher said at a node."""

    field: str
    """Of the request, for errors; ends in a dot."""
    question: Question
    prefix: tuple[int, ...]
    ids: Sequence[int]
    logprobs: Sequence[float]


class StoredTeachers:
    """Puts and reads what stored teachers said. A node is a question and the tokens after it.

    How a student is asked the question makes no difference: it is not what the teacher was shown.
    """

    def __init__(self, catalog: Catalog, store: DistributionStore) -> None:
        self._catalog = catalog
        self._store = store

    def put(self, teacher: Teacher, given: Sequence[Listed]) -> tuple[int, int]:
        """Store all of it, or nothing. Returns how many nodes are new, and how many were known.

        Raises:
            InvalidArgument: something is no distribution.
            AlreadyExists: a node has other values.

        """
        entries: dict[bytes, StoredDistribution] = {}
        fields: dict[bytes, str] = {}
        for one in given:
            key = _key(teacher, one.question, one.prefix)
            entry = self._checked(teacher, one)
            if key in entries and not _same(entries[key], entry):
                raise _differs(teacher, one.field, f"as in {fields[key][:-1]}")
            entries.setdefault(key, entry)
            fields.setdefault(key, one.field)
        try:
            added = self._store.put_once(entries)
        except DiffersError as error:
            raise _differs(teacher, fields[error.key], "that was put before") from None
        return len(added), len(given) - len(added)

    async def read(
        self, teachers: Sequence[Teacher], nodes: NodeSet
    ) -> list[list[Distribution | None]]:
        """By teacher and position: what it said there; None where nothing was put."""
        if not teachers:
            return []
        keys = [
            [_key(teacher, nodes.question, nodes.tokens[:t]) for t in nodes.positions]
            for teacher in teachers
        ]
        found = await asyncio.to_thread(self._store.get, [key for row in keys for key in row])
        return [[_read(found.get(key)) for key in row] for row in keys]

    def _checked(self, teacher: Teacher, one: Listed) -> StoredDistribution:
        model = teacher.model
        tokenizer, vocab = self._catalog.tokenizer(model), self._catalog.usable_vocab(model)
        ids, field = one.ids, f"{one.field}ids"
        check_token_ids(f"{one.field}prefix", one.prefix, model.vocab_size, tokenizer)
        if not 1 <= len(ids) <= MAX_LISTED:
            raise InvalidArgument(field, f"{len(ids)} ids; give 1 to {MAX_LISTED}")
        check_token_ids(field, ids, model.vocab_size, tokenizer)
        if len(set(ids)) < len(ids):
            twice = next(token for i, token in enumerate(ids) if token in ids[:i])
            raise InvalidArgument(field, f"token id {twice} is there twice")
        field = f"{one.field}logprobs"
        if len(one.logprobs) != len(ids):
            raise InvalidArgument(field, f"{len(one.logprobs)} values for {len(ids)} ids")
        logprobs = np.asarray(one.logprobs, dtype=np.float32)
        for i in np.flatnonzero(~(logprobs <= 0.0)).tolist():
            raise InvalidArgument(f"{field}[{i}]", f"{logprobs[i]} is no log-probability")
        total = float(np.exp(logprobs.astype(np.float64)).sum())
        complete = len(ids) >= vocab
        if total > MAX_SUM:
            raise InvalidArgument(field, f"the probabilities add up to {total:.6g}, more than 1")
        if complete and total < 2.0 - MAX_SUM:
            raise InvalidArgument(
                field, f"all tokens are there, but their probabilities add up to {total:.6g}"
            )
        order = np.lexsort((np.asarray(ids), -logprobs))
        return StoredDistribution(
            ids=np.asarray(ids, dtype=np.int32)[order],
            logprobs=np.maximum(logprobs, np.float32(ZERO_LOGPROB))[order],
            top_k=len(ids),
            complete=complete,
        )


def listed_mass(said: Distribution) -> float:
    """The probability of the tokens that are listed, in [0, 1]."""
    return min(1.0, float(np.exp(said.logprobs.astype(np.float64)).sum()))


def on_support(said: Distribution, ids: NDArray[np.int32], p: FloatArray) -> FloatArray:
    """What a stored teacher said, over a node's candidates and tail.

    Args:
        said: by the teacher.
        ids: the candidates, shape (m,).
        p: the student's probabilities at temperature 1, shape (m + 1,), tail last.

    Returns:
        Shape (m + 1,); see `with_spread_rest`.

    """
    t = said.probabilities(ids)
    if said.complete:
        return t
    return with_spread_rest(p, t, np.append(np.isin(ids, said.ids), False))


def _key(teacher: Teacher, question: Question, prefix: Sequence[int]) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    digest.update(f"stored|{teacher.id}|{question.id}|".encode())
    digest.update(np.asarray(prefix, dtype="<u4").tobytes())
    return digest.digest()


def _read(stored: StoredDistribution | None) -> Distribution | None:
    if stored is None:
        return None
    return Distribution(stored.ids, stored.logprobs, stored.top_k, stored.complete)


def _same(one: StoredDistribution, other: StoredDistribution) -> bool:
    return np.array_equal(one.ids, other.ids) and np.array_equal(one.logprobs, other.logprobs)


def _differs(teacher: Teacher, field: str, what: str) -> AlreadyExists:
    return AlreadyExists(
        Reason.DISTRIBUTION_DIFFERS,
        field[:-1],
        f"not the values {what} for the same node; a stored teacher never changes: register "
        "another one for another model",
        kind="teacher",
        name=teacher.id,
    )
