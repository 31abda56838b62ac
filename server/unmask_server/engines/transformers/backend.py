"""What the worker needs of a model, however it is run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from unmask_server.engines.transformers.chains import Tokens


@dataclass(frozen=True, slots=True)
class Work:
    """What a prefill took."""

    computed: int = 0
    """Tokens that went through the model."""
    shared: int = 0
    """Tokens that did not have to."""
    passes: int = 0


class Backend(Protocol):
    """A model with its running batch. Not thread-safe: the worker thread owns it.

    Rows are numbered from 0; a dropped row's number goes to the last one.
    """

    vocab_size: int
    budget: int
    """Tokens whose keys and values may be held at once."""

    def add(self, contexts: list[Tokens]) -> Work:
        """Append a row for each context (tokens that are given and not fed by `step`)."""
        ...

    def step(self, tokens: NDArray[np.int64]) -> torch.Tensor:
        """Feed one token to each row; logits of what follows, shape (rows, vocabulary)."""
        ...

    def drop(self, row: int) -> None:
        """Let a row leave; the last row takes its number."""
        ...

    def own(self) -> NDArray[np.int64]:
        """Tokens that each running row keeps in memory for itself, shape (rows,)."""
        ...

    def pinned(self) -> int:
        """Tokens kept for sharing that running rows need."""
        ...

    def cached(self) -> int:
        """Tokens kept for sharing, used at the moment or not."""
        ...

    def trim(self, limit: int) -> None:
        """Forget what is kept for sharing and unused, down to `limit` tokens."""
        ...

    def clear(self) -> None:
        """Forget all rows and all that is kept."""
        ...

    def hidden(self, sequences: list[Tokens], firsts: list[int]) -> tuple[list[torch.Tensor], Work]:
        """Final hidden states after ``sequence[:i + 1]`` for i from `firsts` on.

        Returns: one tensor a sequence, shape (tokens - first, width); see `head`.

        """
        ...

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits, shape (n, vocabulary), from hidden states (n, width)."""
        ...
