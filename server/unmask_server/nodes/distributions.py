"""Next-token distributions, from the store where they are and from a model where they are not."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from unmask_server.catalog.types import Model
from unmask_server.engines import observed
from unmask_server.engines.base import ZERO_LOGPROB, Sampling, ScoreRequest
from unmask_server.engines.pool import EnginePool
from unmask_server.locks import KeyedLocks
from unmask_server.telemetry import metrics
from unmask_server.tree import DistributionStore, StoredDistribution

WHOLE_VOCABULARY = 256
"""A vocabulary of at most so many ids is always scored and kept whole."""


@dataclass(frozen=True, slots=True)
class Distribution:
    """A next-token distribution on some ids; what the ids lack to 1 is the tail."""

    ids: NDArray[np.int32]
    """Shape (k,), without duplicates; the first `top_k` are the likeliest, in order."""
    logprobs: NDArray[np.float32]
    """Shape (k,); `ZERO_LOGPROB` is probability zero."""
    top_k: int
    complete: bool
    """Whether the ids are the whole vocabulary, so that there is no tail."""

    @property
    def likeliest(self) -> NDArray[np.int32]:
        """The `top_k` likeliest ids, likeliest first; shape (top_k,)."""
        return self.ids[: self.top_k]

    def covers(self, top_k: int, ids: Sequence[int]) -> bool:
        """Whether it holds the `top_k` likeliest ids and each of `ids`."""
        if self.complete:
            return True
        return self.top_k >= top_k and set(ids) <= set(self.ids.tolist())

    def at_most(self, ids: NDArray[np.int32]) -> NDArray[np.float64]:
        """The most that each of `ids` can have, by what is known; shape (len(ids),)."""
        rest = 0.0
        if not self.complete and self.top_k:
            rest = float(np.exp(np.float64(self.logprobs[self.top_k - 1])))
        known = dict(zip(self.ids.tolist(), np.exp(self.logprobs.astype(np.float64)), strict=True))
        return np.array([known.get(token, rest) for token in ids.tolist()], dtype=np.float64)

    def probabilities(self, ids: NDArray[np.int32]) -> NDArray[np.float64]:
        """Probabilities of `ids` and, last, of all others together; shape (len(ids) + 1,).

        Ids that a complete distribution lacks have probability zero (a smaller vocabulary).
        """
        order = np.argsort(self.ids, kind="stable")
        place = np.searchsorted(self.ids, ids, sorter=order)
        place = order[np.minimum(place, len(order) - 1)]
        found = self.ids[place] == ids
        logprobs = np.where(found, self.logprobs[place], np.float32(ZERO_LOGPROB))
        result = np.empty(len(ids) + 1)
        result[:-1] = np.exp(logprobs.astype(np.float64))
        total = float(result[:-1].sum())
        if self.complete and found.sum() == len(self.ids):
            # float32 log-probabilities add up to 1 only nearly; there is no tail to take the rest.
            result[:-1] /= total
            result[-1] = 0.0
        else:
            result[-1] = max(0.0, 1.0 - total)
        return result


@dataclass(frozen=True, slots=True)
class ScoreJob:
    """Distributions wanted from one model along one sequence."""

    model: Model
    vocab_size: int
    """Ids that have a token: what lies above (padding columns) is cut off before the softmax."""
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    """The continuation; position t is the distribution after prompt + tokens[:t]."""
    positions: tuple[int, ...]
    views: tuple[Sampling, ...]
    top_k: int
    also: tuple[tuple[int, ...], ...] = ()
    """Ids wanted besides the likeliest, one tuple a position; empty for none."""


class Scorer:
    """Answers `ScoreJob`s; nothing is computed twice, whoever asks.

    What is found in the store is returned; what is missing is computed in one forward pass,
    stored, and returned. Concurrent jobs on the same sequence wait for one another.
    """

    def __init__(self, store: DistributionStore, engines: EnginePool) -> None:
        self._store = store
        self._engines = engines
        self._locks = KeyedLocks()
        self.computed = 0
        """Distributions computed since the start."""

    async def score(self, job: ScoreJob) -> list[list[Distribution]]:
        """Distributions by position, then by view.

        What is returned depends on the job alone: `top_k` is the job's, however much more other
        jobs have had stored.

        Raises:
            BadRequestError: the sequence does not fit the model.
            EngineError: the model cannot run now.

        """
        keys = _keys(job)
        whole = job.vocab_size <= WHOLE_VOCABULARY
        top_k = job.vocab_size if whole else min(job.top_k, job.vocab_size)
        found = await self._load(keys)
        metrics.DISTRIBUTIONS_READ.inc(len(found))
        if (missing := _missing(job, keys, found, top_k)) == []:
            return _arrange(keys, found, top_k)
        async with self._locks.holding(_sequence_key(job)):
            # Somebody may have scored it while this waited.
            found = await self._load(keys)
            if missing := _missing(job, keys, found, top_k):
                await self._compute(job, keys, found, missing, top_k)
        return _arrange(keys, found, top_k)

    async def _load(self, keys: list[list[bytes]]) -> dict[bytes, Distribution]:
        wanted = [key for row in keys for key in row]
        stored = await asyncio.to_thread(self._store.get, wanted)
        return {key: _from_stored(value) for key, value in stored.items()}

    async def _compute(
        self,
        job: ScoreJob,
        keys: list[list[bytes]],
        found: dict[bytes, Distribution],
        missing: list[int],
        top_k: int,
    ) -> None:
        with self._engines.hold(job.model):
            await self._compute_held(job, keys, found, missing, top_k)

    async def _compute_held(
        self,
        job: ScoreJob,
        keys: list[list[bytes]],
        found: dict[bytes, Distribution],
        missing: list[int],
        top_k: int,
    ) -> None:
        engine = await self._engines.get(job.model, job.vocab_size)
        vocab_size = engine.info.vocab_size
        also = tuple(
            # Ids already kept are asked for again, so that the merged row is of one forward pass.
            tuple(sorted(_wanted(job, i, keys, found, vocab_size)))
            for i in missing
        )
        scores = await observed.score(
            engine,
            ScoreRequest(
                prompt=job.prompt,
                continuation=job.tokens,
                positions=tuple(job.positions[i] for i in missing),
                top_k=min(top_k, vocab_size),
                views=job.views,
                also=also,
            ),
        )
        fresh: dict[bytes, StoredDistribution] = {}
        for i, score in zip(missing, scores, strict=True):
            complete = len(score.ids) >= vocab_size
            for view, key in enumerate(keys[i]):
                fresh[key] = StoredDistribution(
                    ids=score.ids,
                    logprobs=score.logprobs[view],
                    top_k=min(top_k, len(score.ids)),
                    complete=complete,
                )
        await asyncio.to_thread(self._store.put, fresh)
        # Read back what the store kept: another server may have been first, and all must agree.
        found.update(await self._load([list(fresh)]))
        self.computed += len(fresh)
        metrics.DISTRIBUTIONS_SCORED.inc(len(fresh))


def _from_stored(stored: StoredDistribution) -> Distribution:
    return Distribution(stored.ids, stored.logprobs, stored.top_k, stored.complete)


def _token_bytes(tokens: Sequence[int]) -> bytes:
    return np.asarray(tokens, dtype="<u4").tobytes()


def _sequence_key(job: ScoreJob) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    digest.update(job.model.fingerprint.encode())
    digest.update(len(job.prompt).to_bytes(4, "little"))
    digest.update(_token_bytes(job.prompt))
    digest.update(_token_bytes(job.tokens))
    return digest.digest()


def _keys(job: ScoreJob) -> list[list[bytes]]:
    """Store keys by position and view: a hash of model, view and all tokens before the position.

    Where the prompt ends does not matter to the model and is not part of the key.
    """
    rows: list[list[bytes]] = [[] for _ in job.positions]
    for view in job.views:
        digest = hashlib.blake2b(digest_size=16)
        digest.update(job.model.fingerprint.encode())
        cuts = f"{view.top_p!r}|{view.top_k!r}" + ("|joint" if view.joint else "")
        digest.update(f"|{view.temperature!r}|{cuts}|".encode())
        digest.update(_token_bytes(job.prompt))
        done = 0
        for row, position in zip(rows, job.positions, strict=True):
            digest.update(_token_bytes(job.tokens[done:position]))
            done = position
            row.append(digest.copy().digest())
    return rows


def _also(job: ScoreJob, index: int, vocab_size: int) -> set[int]:
    return {i for i in job.also[index] if i < vocab_size} if job.also else set()


def _wanted(
    job: ScoreJob,
    index: int,
    keys: list[list[bytes]],
    found: dict[bytes, Distribution],
    vocab_size: int,
) -> set[int]:
    wanted = _also(job, index, vocab_size)
    for key in keys[index]:
        if key in found:
            wanted.update(found[key].ids.tolist())
    return wanted


def _missing(
    job: ScoreJob, keys: list[list[bytes]], found: dict[bytes, Distribution], top_k: int
) -> list[int]:
    """Indices of the positions that the store does not answer in full."""
    return [
        i
        for i, row in enumerate(keys)
        if not all(
            key in found and found[key].covers(top_k, tuple(_also(job, i, job.vocab_size)))
            for key in row
        )
    ]


def _arrange(
    keys: list[list[bytes]], found: dict[bytes, Distribution], top_k: int
) -> list[list[Distribution]]:
    return [
        [replace(found[key], top_k=min(top_k, found[key].top_k)) for key in row] for row in keys
    ]
