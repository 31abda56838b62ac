"""The one interface between Unmask and whatever runs a model.

Token ids in, token ids out; nothing here knows of text, questions or trees. Every length is in
tokens, every log-probability is natural (nats), every position is an index into the *continuation*
(the generated part), so position ``t`` is the next-token distribution after ``prompt +
continuation[:t]``.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

ZERO_LOGPROB = -1.0e4
"""Stands for probability zero where a log-probability is kept: finite, and exp() of it is 0.0."""


class FinishReason(enum.Enum):
    """Why a rollout ended, as the engine tells it (never guessed from the last token)."""

    STOP = "stop"
    """A stop token was sampled; it is the last of `Sample.tokens`."""
    LENGTH = "length"
    """The token limit was reached: the rollout is truncated."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How next tokens are drawn. Part of a policy's identity.

    The distribution is softmax(logits / temperature), cut to the `top_k` likeliest ids, then to the
    smallest set of the likeliest whose (renormalised) mass reaches `top_p`, then renormalised.
    """

    temperature: float = 1.0
    """> 0."""
    top_p: float = 1.0
    """In (0, 1]; 1 keeps everything."""
    top_k: int = 0
    """>= 1, or 0 to keep everything."""
    joint: bool = False
    """Where both are set: whether `top_p` is a share of the whole distribution, as SGLang has it,
    instead of what `top_k` left, as transformers and vLLM have it."""

    @property
    def is_raw(self) -> bool:
        """Whether this is the model's own softmax."""
        return self.temperature == 1.0 and self.top_p == 1.0 and self.top_k == 0


RAW = Sampling()


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """One rollout wanted: continue ``prompt + forced``.

    `seed` fixes the outcome: the same request on the same model gives the same tokens, whatever
    else is in the batch (up to ties in floating point).
    """

    prompt: tuple[int, ...]
    forced: tuple[int, ...]
    max_new_tokens: int
    """How many tokens may still be sampled; >= 1."""
    seed: int


@dataclass(frozen=True, slots=True)
class Sample:
    """One finished rollout."""

    index: int
    """Which request of the batch this answers."""
    tokens: tuple[int, ...]
    """The sampled ids, after `forced`; the stop token included."""
    finish: FinishReason


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """Next-token distributions wanted along ``prompt + continuation``.

    `positions` are ascending indices into the continuation, each in [0, len(continuation)].
    `views` says under which samplings (`RAW` is the plain softmax). The ids returned at a position
    are its `top_k` likeliest (by logits; all ids if `top_k` >= vocabulary), then those of
    `also[i]` that are not among them, without duplicates.
    """

    prompt: tuple[int, ...]
    continuation: tuple[int, ...]
    positions: tuple[int, ...]
    top_k: int
    views: tuple[Sampling, ...] = (RAW,)
    also: tuple[tuple[int, ...], ...] = ()
    """Extra ids, one tuple a position; empty for none anywhere."""


@dataclass(frozen=True, slots=True)
class PositionScores:
    """The answer at one position."""

    ids: NDArray[np.int32]
    """Shape (k,), without duplicates; likeliest first, then the extra ones."""
    logprobs: NDArray[np.float32]
    """Shape (views, k): log-probabilities under each view; `ZERO_LOGPROB` for probability 0."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What an engine knows of the model it serves."""

    vocab_size: int
    """Columns of the logits. Ids must be in [0, vocab_size)."""
    max_context: int
    """Prompt plus continuation, at most."""
    eos_ids: frozenset[int] = field(default_factory=frozenset)
    """End tokens by the model's own generation config."""
    kind: str = "other"
    """Which engine it is: `sglang`, `transformers`."""


class EngineError(Exception):
    """The engine could not do it now; asking again may work."""


class ModelChangedError(EngineError):
    """The engine runs another model by now than the one that was registered."""


class BadRequestError(ValueError):
    """The request can never be done: an id out of range, too long for the context, …

    Raised before anything is computed; other requests of the batch are not affected.
    """


class Engine(Protocol):
    """A running model. All calls may be made concurrently from one event loop."""

    @property
    def info(self) -> ModelInfo:
        """Facts of the model."""
        ...

    def sample(
        self, requests: Sequence[SampleRequest], sampling: Sampling, stop_ids: frozenset[int]
    ) -> AsyncGenerator[Sample, None]:
        """Yield one `Sample` a request, in the order in which they finish.

        Closing the iterator (or cancelling the task) abandons what is not finished.

        Raises:
            BadRequestError: a request is impossible (checked for all of them first).
            EngineError: the engine failed; samples already yielded stand.

        """
        ...

    async def score(self, request: ScoreRequest) -> list[PositionScores]:
        """One forward pass over the sequence; one `PositionScores` a position.

        Raises: as `sample`.
        """
        ...

    async def close(self) -> None:
        """Release the model. Running calls raise `EngineError`."""
        ...
