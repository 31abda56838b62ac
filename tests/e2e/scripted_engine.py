"""An engine without a model: fast, of known answers, and held back as a test likes."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Sequence

import numpy as np
from numpy.typing import NDArray
from unmask_server.catalog.types import Model
from unmask_server.engines.base import (
    FinishReason,
    ModelInfo,
    PositionScores,
    Sample,
    SampleRequest,
    Sampling,
    ScoreRequest,
)

VOCABULARY = 21


class ScriptedEngine:
    """Next tokens are drawn from a distribution that the tokens before fix."""

    def __init__(self, allowed: int | None = None) -> None:
        self.info = ModelInfo(VOCABULARY, 4096, frozenset({0}))
        self.sampled = 0
        """Rollouts that were handed out."""
        self.calls = 0
        """Calls of `sample` that go on."""
        self._allowed = allowed
        self._moved = asyncio.Event()

    def allow(self, more: int | None) -> None:
        """Let so many more rollouts finish; None: all."""
        self._allowed = None if more is None else (self._allowed or 0) + more
        self._moved.set()
        self._moved = asyncio.Event()

    async def open(self, model: Model, vocab_size: int) -> ScriptedEngine:
        """Be every model's engine."""
        return self

    async def sample(
        self, requests: Sequence[SampleRequest], sampling: Sampling, stop_ids: frozenset[int]
    ) -> AsyncGenerator[Sample, None]:
        """Yield rollouts in order."""
        self.calls += 1
        try:
            for index, request in enumerate(requests):
                while self._allowed is not None and self.sampled >= self._allowed:
                    await self._moved.wait()
                if index % 64 == 0:
                    await asyncio.sleep(0)
                tokens, finish = self.rollout(request, stop_ids)
                self.sampled += 1
                yield Sample(index, tokens, finish)
        finally:
            self.calls -= 1

    def rollout(
        self, request: SampleRequest, stop_ids: frozenset[int]
    ) -> tuple[tuple[int, ...], FinishReason]:
        """The same for the same request."""
        return _rollout(request, stop_ids)

    async def score(self, request: ScoreRequest) -> list[PositionScores]:
        """The distributions that are sampled from, under every view."""
        found = []
        for i, position in enumerate(request.positions):
            logprobs = np.log(_probabilities(request.prompt + request.continuation[:position]))
            order = np.argsort(-logprobs, kind="stable")[: request.top_k].tolist()
            also = request.also[i] if request.also else ()
            ids = list(dict.fromkeys([*order, *also]))
            row = logprobs[ids].astype(np.float32)
            found.append(
                PositionScores(np.asarray(ids, np.int32), np.tile(row, (len(request.views), 1)))
            )
        return found

    async def close(self) -> None:
        """Nothing to do."""


def _rollout(
    request: SampleRequest, stop_ids: frozenset[int]
) -> tuple[tuple[int, ...], FinishReason]:
    rng = np.random.default_rng(request.seed)
    path, tokens = request.prompt + request.forced, []
    while len(tokens) < request.max_new_tokens:
        token = int(rng.choice(VOCABULARY, p=_probabilities(path)))
        tokens.append(token)
        path = (*path, token)
        if token in stop_ids:
            return tuple(tokens), FinishReason.STOP
    return tuple(tokens), FinishReason.LENGTH


_known: dict[int, NDArray[np.float64]] = {}


def _probabilities(path: tuple[int, ...]) -> NDArray[np.float64]:
    """By the last token only: few distributions, far from uniform."""
    last = path[-1] if path else 0
    if last not in _known:
        digest = hashlib.blake2b(str(last).encode(), digest_size=8).digest()
        rng = np.random.default_rng(int.from_bytes(digest, "little"))
        weights = np.exp(2.0 * rng.standard_normal(VOCABULARY))
        _known[last] = weights / weights.sum()
    return _known[last]
