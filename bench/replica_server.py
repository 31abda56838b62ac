"""A server whose engine costs nothing but time: `python -m bench.replica_server DATABASE ADDRESS
SECONDS IN_FLIGHT LEASE_SECONDS`.

Each rollout takes SECONDS, IN_FLIGHT of them at once, as where a GPU elsewhere samples; its tokens
are those of its seed.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import structlog
from unmask_server.app import build
from unmask_server.catalog.types import Model
from unmask_server.config import Settings
from unmask_server.engines.base import (
    FinishReason,
    ModelInfo,
    PositionScores,
    Sample,
    SampleRequest,
    Sampling,
    ScoreRequest,
)
from unmask_server.serve import running

WORDS = 20
"""Ids 1 to 20 are sampled; 0 would end a generation."""


class TimedEngine:
    """Samples by the clock."""

    def __init__(self, seconds: float, in_flight: int) -> None:
        self.info = ModelInfo(WORDS + 1, 4096, frozenset({0}))
        self._seconds = seconds
        self._in_flight = in_flight

    async def open(self, model: Model, vocab_size: int) -> TimedEngine:
        """Be every model's engine."""
        return self

    async def sample(
        self, requests: Sequence[SampleRequest], sampling: Sampling, stop_ids: frozenset[int]
    ) -> AsyncGenerator[Sample, None]:
        """Yield rollouts, `in_flight` after every `seconds`."""
        for start in range(0, len(requests), self._in_flight):
            await asyncio.sleep(self._seconds)
            for index in range(start, min(start + self._in_flight, len(requests))):
                seed = requests[index].seed
                length = requests[index].max_new_tokens
                tokens = tuple((seed >> 5 * i) % WORDS + 1 for i in range(length))
                yield Sample(index, tokens, FinishReason.LENGTH)

    async def score(self, request: ScoreRequest) -> list[PositionScores]:
        """Chances that fall like 1/n, from an id on that the prompt decides."""
        first = sum(request.prompt) % (WORDS + 1)
        ids = (np.arange(WORDS + 1, dtype=np.int32) + first) % (WORDS + 1)
        chances = 1.0 / np.arange(1, WORDS + 2)
        logprobs = np.log(chances / chances.sum()).astype(np.float32)
        k = min(request.top_k, WORDS + 1)
        views = np.repeat(logprobs[None, :k], len(request.views), axis=0)
        return [PositionScores(ids[:k], views) for _ in request.positions]

    async def close(self) -> None:
        """Nothing to do."""


async def serve(
    database: str, address: str, seconds: float, in_flight: int, lease_seconds: float
) -> None:
    """Serve until killed."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(64))
    # Many clients come from one address here.
    settings = Settings(
        database=database, listen=[address], lease_seconds=lease_seconds, client_calls=4000
    )
    async with running(settings, build(settings, TimedEngine(seconds, in_flight).open)):
        await asyncio.Event().wait()


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    asyncio.run(
        serve(sys.argv[1], sys.argv[2], *(  # type: ignore[arg-type]
            kind(text) for kind, text in zip((float, int, float), sys.argv[3:], strict=True)
        ))
    )  # fmt: skip
