"""From final hidden states to the answers of `ScoreRequest`, and remembering those states."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from unmask_server.engines.base import PositionScores, ScoreRequest
from unmask_server.engines.transformers.chains import Tokens
from unmask_server.engines.transformers.sampling import likeliest, log_probs

_CHUNK_LOGITS = 1 << 21
"""Logits computed at once, at most: 16 MB in float64, a few times that on the way."""


class NotFiniteError(ArithmeticError):
    """The model gave NaN or infinity."""


def check_finite(logits: torch.Tensor) -> None:
    """Refuse logits from which no distribution follows.

    Raises:
        NotFiniteError: one is NaN or infinite.

    """
    if not bool(torch.isfinite(logits).all()):
        raise NotFiniteError(
            "the model gave NaN or infinite logits; if it is in float16, load it in float32"
        )


def score(
    request: ScoreRequest, hidden: torch.Tensor, head: Callable[[torch.Tensor], torch.Tensor]
) -> list[PositionScores]:
    """Answer a request from the hidden states of its positions.

    Args:
        request: valid.
        hidden: shape (positions, width).
        head: gives logits (n, vocabulary) of hidden states (n, width).

    Raises:
        NotFiniteError: a logit is NaN or infinite.

    """
    answers: list[PositionScores] = []
    at, rows = 0, 1
    while at < len(request.positions):
        logits = head(hidden[at : at + rows]).float()
        check_finite(logits)
        # The first position alone tells how many logits one has.
        rows_next = max(1, _CHUNK_LOGITS // logits.shape[-1])
        top = likeliest(logits, request.top_k)
        views = torch.stack([log_probs(logits, view) for view in request.views], 1).cpu()
        top_ids = top.cpu().numpy().astype(np.int32)
        for i in range(logits.shape[0]):
            ids = _with_extra(top_ids[i], request.also[at + i] if request.also else ())
            picked = views[i][:, torch.from_numpy(ids.astype(np.int64))]
            answers.append(PositionScores(ids, picked.numpy().astype(np.float32)))
        at, rows = at + logits.shape[0], rows_next
    return answers


def _with_extra(top: NDArray[np.int32], extra: tuple[int, ...]) -> NDArray[np.int32]:
    """`top`, then those of `extra` that are not in it, each once, in their order."""
    seen = set(top.tolist()) if extra else set()
    more = [token for token in dict.fromkeys(extra) if token not in seen]
    return np.concatenate([top, np.asarray(more, np.int32)]) if more else top


class HiddenCache:
    """Final hidden states of recently scored sequences, bounded by their bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bytes = 0
        self._entries: OrderedDict[bytes, tuple[int, torch.Tensor]] = OrderedDict()

    def span(self, tokens: Tokens) -> tuple[int, int] | None:
        """The first and last index at which states of this sequence are known."""
        entry = self._entries.get(tokens.tobytes())
        return None if entry is None else (entry[0], entry[0] + len(entry[1]) - 1)

    def get(self, tokens: Tokens, indices: NDArray[np.int64]) -> torch.Tensor | None:
        """States after ``tokens[:i + 1]``, shape (indices, width), if all of them are known."""
        key = tokens.tobytes()
        entry = self._entries.get(key)
        if entry is None:
            return None
        first, states = entry
        if indices[0] < first or indices[-1] >= first + len(states):
            return None
        self._entries.move_to_end(key)
        return states[torch.from_numpy(indices - first).to(states.device)]

    def put(self, tokens: Tokens, first: int, states: torch.Tensor) -> None:
        """Keep the states from index `first` on, in place of what was known of the sequence."""
        key = tokens.tobytes()
        old = self._entries.pop(key, None)
        if old is not None:
            self._bytes -= _size(key, old[1])
        if _size(key, states) > self._limit:
            return
        self._entries[key] = (first, states)
        self._bytes += _size(key, states)
        while self._bytes > self._limit:
            oldest, (_, gone) = self._entries.popitem(last=False)
            self._bytes -= _size(oldest, gone)

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self._bytes = 0


def _size(key: bytes, states: torch.Tensor) -> int:
    return states.numel() * states.element_size() + len(key)
