"""What callers on an event loop hand to the worker thread, and how they get answers back."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

import numpy as np
import torch

from unmask_server.engines.base import (
    EngineError,
    PositionScores,
    Sample,
    SampleRequest,
    Sampling,
    ScoreRequest,
)
from unmask_server.engines.transformers.chains import Tokens


class SampleCall:
    """One call of `sample`: its requests wait here until rows are free for them."""

    def __init__(
        self,
        requests: Sequence[SampleRequest],
        sampling: Sampling,
        stop_ids: frozenset[int],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.requests = requests
        self.sampling = sampling
        self.stop_ids = stop_ids
        self.tokens = [_join(request.prompt, request.forced) for request in requests]
        # Neighbours in this order share the longest prefixes: they should run together.
        order = sorted(range(len(requests)), key=lambda i: self.tokens[i].astype(">u4").tobytes())
        self.waiting = deque(order)
        self.abandoned = False
        """Set by the caller, read by the worker."""
        self._loop = loop
        self._answers: asyncio.Queue[list[Sample] | EngineError] = asyncio.Queue()

    async def answer(self) -> list[Sample]:
        """Samples that have finished since the last time; waits for at least one.

        Raises:
            EngineError: the engine failed or was closed.

        """
        got = await self._answers.get()
        if isinstance(got, EngineError):
            raise got
        return got

    def deliver(self, answer: list[Sample] | EngineError) -> None:
        """Give the caller something, from any thread."""
        if isinstance(answer, EngineError):
            self.abandoned = True
        try:
            self._loop.call_soon_threadsafe(self._answers.put_nowait, answer)
        except RuntimeError:  # its loop is closed: nobody listens any more
            self.abandoned = True


class ScoreCall:
    """One call of `score`."""

    def __init__(self, request: ScoreRequest) -> None:
        self.request = request
        before = len(request.prompt) - 1
        self.indices = np.asarray(request.positions, np.int64) + before
        """Where in the sequence the last token before each position stands."""
        self.tokens = _join(request.prompt, request.continuation)
        self.states: torch.Tensor | None = None
        """Final hidden states at `indices`, while the worker answers."""
        self._loop = asyncio.get_running_loop()
        self.future: asyncio.Future[list[PositionScores]] = self._loop.create_future()

    @property
    def abandoned(self) -> bool:
        """Whether nobody waits for the answer."""
        return self.future.cancelled()

    def deliver(self, answer: list[PositionScores] | EngineError) -> None:
        """Give the caller the answer, from any thread."""
        try:
            self._loop.call_soon_threadsafe(self._settle, answer)
        except RuntimeError:  # its loop is closed: nobody listens any more
            return

    def _settle(self, answer: list[PositionScores] | EngineError) -> None:
        if self.future.done():
            return
        if isinstance(answer, EngineError):
            self.future.set_exception(answer)
        else:
            self.future.set_result(answer)


def _join(a: tuple[int, ...], b: tuple[int, ...]) -> Tokens:
    return np.asarray((*a, *b), np.int32)
