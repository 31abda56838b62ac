"""Log-ratios of the tokens of rollouts and trajectories, from the store or from the models."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from unmask_server.catalog.types import Model
from unmask_server.engines import observed
from unmask_server.engines.base import ScoreRequest
from unmask_server.engines.pool import EnginePool
from unmask_server.locks import KeyedLocks
from unmask_server.tree import RolloutScoreStore, StoredRollout

FloatArray = NDArray[np.float64]

_AT_ONCE = 64
"""Rollouts that are scored together and stored in one transaction."""


class RolloutScorer:
    """Scores rollouts' sampled tokens under a model and a prompt, each once."""

    def __init__(self, store: RolloutScoreStore, engines: EnginePool) -> None:
        self._store = store
        self._engines = engines
        self._locks = KeyedLocks()
        self.computed = 0
        """Rollouts scored since the start."""

    async def score(
        self,
        model: Model,
        vocab_size: int,
        prompt: tuple[int, ...],
        rollouts: Sequence[StoredRollout],
    ) -> dict[int, FloatArray]:
        """Log-probabilities under the plain softmax, in nats, by rollout id.

        Each has shape (depth - forced_depth,): the tokens that were sampled.

        Raises:
            BadRequestError: prompt and rollout do not fit the model.
            EngineError: the model cannot run now.

        """
        source = _source(model, prompt)
        sampled = [r for r in rollouts if len(r.tokens) > r.forced_depth]
        async with self._locks.holding(source):
            found = await asyncio.to_thread(self._store.get, [r.id for r in sampled], source)
            missing = [r for r in sampled if r.id not in found]
            if missing:
                with self._engines.hold(model):
                    for start in range(0, len(missing), _AT_ONCE):
                        part = missing[start : start + _AT_ONCE]
                        fresh = await self._compute(model, vocab_size, prompt, part)
                        await asyncio.to_thread(self._store.put, fresh, source)
                        found.update(fresh)
                        self.computed += len(fresh)
                # Another server may have been first, and all must agree.
                found.update(
                    await asyncio.to_thread(self._store.get, [r.id for r in missing], source)
                )
        return {key: values.astype(np.float64) for key, values in found.items()}

    async def _compute(
        self,
        model: Model,
        vocab_size: int,
        prompt: tuple[int, ...],
        rollouts: Sequence[StoredRollout],
    ) -> dict[int, NDArray[np.float32]]:
        engine = await self._engines.get(model, vocab_size)

        async def one(rollout: StoredRollout) -> NDArray[np.float32]:
            tokens = rollout.tokens[rollout.forced_depth :]
            scores = await observed.score(
                engine,
                ScoreRequest(
                    prompt=prompt,
                    continuation=rollout.tokens,
                    positions=tuple(range(rollout.forced_depth, len(rollout.tokens))),
                    top_k=1,
                    also=tuple((token,) for token in tokens),
                ),
            )
            return np.array(
                [
                    at.logprobs[0][np.flatnonzero(at.ids == token)[0]]
                    for at, token in zip(scores, tokens, strict=True)
                ],
                dtype=np.float32,
            )

        values = await asyncio.gather(*map(one, rollouts))
        return dict(zip((r.id for r in rollouts), values, strict=True))


def _source(model: Model, prompt: tuple[int, ...]) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    digest.update(model.fingerprint.encode())
    digest.update(np.asarray(prompt, dtype="<u4").tobytes())
    return digest.digest()
