"""Models whose caches are not plain keys and values: no cache at all.

State-space and hybrid models, attention that ours does not do, positions scaled by the length of
the input. Each step runs whole sequences, those of equal length together, so there is no padding
to get wrong: slow, but right for anything that is a causal language model.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from unmask_server.engines.transformers.backend import Work
from unmask_server.engines.transformers.chains import Tokens

_PASS_TOKENS = 4096
"""Tokens in one pass, at most, unless one sequence is longer."""
_PASS_LOGITS = 1 << 26
"""Logits in one pass, likewise: the model gives them for all tokens."""


class RecomputeBackend:
    """See `Backend`. Its hidden states are the logits themselves."""

    def __init__(self, model: Any, vocab_size: int, *, budget: int) -> None:
        self.vocab_size = vocab_size
        self.budget = budget
        self._model = model
        self._device = torch.device(model.device)
        self._rows: list[Tokens] = []

    def _logits(self, sequences: list[Tokens], keep: list[int]) -> list[torch.Tensor]:
        """Logits after each of the last `keep` tokens, one tensor a sequence."""
        out: list[torch.Tensor | None] = [None] * len(sequences)
        by_shape: dict[tuple[int, int], list[int]] = {}
        for i, (tokens, kept) in enumerate(zip(sequences, keep, strict=True)):
            by_shape.setdefault((len(tokens), kept), []).append(i)
        for (length, kept), members in by_shape.items():
            size = max(1, min(_PASS_TOKENS, _PASS_LOGITS // self.vocab_size) // length)
            for start in range(0, len(members), size):
                here = members[start : start + size]
                ids = np.stack([sequences[i] for i in here]).astype(np.int64)
                logits = self._model(
                    input_ids=torch.from_numpy(ids).to(self._device), use_cache=False
                ).logits[:, -kept:, : self.vocab_size]
                for i, row in zip(here, logits, strict=True):
                    out[i] = row.clone()
        return [row for row in out if row is not None]

    def add(self, contexts: list[Tokens]) -> Work:
        """See `Backend`."""
        self._rows.extend(contexts)
        return Work()

    def step(self, tokens: NDArray[np.int64]) -> torch.Tensor:
        """See `Backend`."""
        self._rows = [
            np.append(row, np.int32(token)) for row, token in zip(self._rows, tokens, strict=True)
        ]
        return torch.cat(self._logits(self._rows, [1] * len(self._rows)))

    def drop(self, row: int) -> None:
        """See `Backend`."""
        self._rows[row] = self._rows[-1]
        self._rows.pop()

    def own(self) -> NDArray[np.int64]:
        """See `Backend`: ids only, but a pass needs room for all of them."""
        return np.fromiter(map(len, self._rows), np.int64, len(self._rows))

    def pinned(self) -> int:
        """See `Backend`."""
        return 0

    def cached(self) -> int:
        """See `Backend`."""
        return 0

    def trim(self, limit: int) -> None:
        """See `Backend`: nothing is kept."""

    def clear(self) -> None:
        """See `Backend`."""
        self._rows.clear()

    def hidden(self, sequences: list[Tokens], firsts: list[int]) -> tuple[list[torch.Tensor], Work]:
        """See `Backend`."""
        keep = [len(tokens) - first for tokens, first in zip(sequences, firsts, strict=True)]
        return self._logits(sequences, keep), Work(sum(map(len, sequences)), 0, len(sequences))

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """See `Backend`: they are logits already."""
        return hidden
