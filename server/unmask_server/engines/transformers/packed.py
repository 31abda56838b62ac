"""Models with plain key-value caches: packed passes over our own cache."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from unmask_server.engines.transformers import attention
from unmask_server.engines.transformers.attention import Plan, PrefillPlan, Segment
from unmask_server.engines.transformers.backend import Work
from unmask_server.engines.transformers.chains import Chain, ChainCache, Tokens, Wanted, plan
from unmask_server.engines.transformers.heads import Head
from unmask_server.engines.transformers.rows import Rows

_PASS_TOKENS = 2048
"""Tokens in one prefill pass, at most: bounds the memory of activations and masks."""


class PackedBackend:
    """See `Backend`."""

    def __init__(self, model: Any, head: Head, *, rows: int, budget: int) -> None:
        model.set_attn_implementation(attention.NAME)
        self.vocab_size = head.vocab_size
        self.budget = budget
        self._body = model.base_model
        self._head = head
        self._device = torch.device(model.device)
        self._rows = Rows(rows, self._device)
        self._chains = ChainCache()

    def _forward(self, ids: Tokens | NDArray[np.int64], positions: Any, to: Plan) -> torch.Tensor:
        """Final hidden states of packed tokens, shape (tokens, width)."""
        with attention.attending(to):
            out = self._body(
                input_ids=torch.as_tensor(ids, dtype=torch.int64, device=self._device)[None],
                position_ids=torch.as_tensor(positions, device=self._device)[None],
                use_cache=False,
            )
        return out.last_hidden_state[0]

    def add(self, contexts: list[Tokens]) -> Work:
        """See `Backend`."""
        filled = [context for context in contexts if len(context)]
        places, wanted = plan(filled, self._chains)
        passes = self._compute(wanted)
        by_context = iter(places)
        self._rows.add([next(by_context) if len(context) else None for context in contexts])
        computed = sum(len(item.chain.tokens) - item.shared for item in wanted)
        return Work(computed, sum(map(len, filled)) - computed, passes)

    def step(self, tokens: NDArray[np.int64]) -> torch.Tensor:
        """See `Backend`."""
        positions = self._rows.positions
        self._rows.prepare()
        hidden = self._forward(tokens, positions, self._rows)
        self._rows.advance()
        return self._head(hidden)

    def _compute(self, wanted: list[Wanted]) -> int:
        """Compute chains, those first that others begin with. Returns the number of passes."""
        passes = 0
        for level in sorted({item.level for item in wanted}):
            segments = []
            for item in wanted:
                if item.level == level:
                    if item.source is not None:
                        item.chain.begin(item.source, item.shared)
                    segments.append((item.chain, len(item.chain.tokens)))
            for pieces in _passes(segments):
                self._prefill(pieces)
                passes += 1
        for item in wanted:
            self._chains.add(item.chain)
        return passes

    def _prefill(self, pieces: list[Segment]) -> torch.Tensor:
        ids = np.concatenate([s.chain.tokens[s.start : s.end] for s in pieces])
        positions = np.concatenate([np.arange(s.start, s.end) for s in pieces])
        hidden = self._forward(ids, positions, PrefillPlan(pieces))
        for s in pieces:
            s.chain.done = s.end
        return hidden

    def hidden(self, sequences: list[Tokens], firsts: list[int]) -> tuple[list[torch.Tensor], Work]:
        """See `Backend`."""
        chains, computed, passes = [], 0, 0
        for tokens, first in zip(sequences, firsts, strict=True):
            chain = Chain(tokens)
            source, shared = self._chains.find(tokens)
            if source is not None and min(shared, first):
                chain.begin(source, min(shared, first))
            computed += len(tokens) - chain.done
            chains.append(chain)
        states: dict[Chain, list[torch.Tensor]] = {chain: [] for chain in chains}
        first_of = dict(zip(chains, firsts, strict=True))
        for pieces in _passes([(chain, len(chain.tokens)) for chain in chains]):
            out, at = self._prefill(pieces), 0
            passes += 1
            for s in pieces:
                skip = max(0, first_of[s.chain] - s.start)
                states[s.chain].append(out[at : at + s.end - s.start][skip:])
                at += s.end - s.start
        for chain in chains:
            known, shared = self._chains.find(chain.tokens)
            if known is None or shared < len(chain.tokens):
                self._chains.add(chain)
        work = Work(computed, sum(map(len, sequences)) - computed, passes)
        return [torch.cat(states[chain]) for chain in chains], work

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """See `Backend`."""
        return self._head(hidden)

    def layers(self) -> set[int]:
        """Layers whose keys and values have been computed in all chains that are kept."""
        return self._chains.layers()

    def drop(self, row: int) -> None:
        """See `Backend`."""
        self._rows.drop(row)

    def own(self) -> NDArray[np.int64]:
        """See `Backend`."""
        return self._rows.own_tokens()

    def pinned(self) -> int:
        """See `Backend`."""
        return self._chains.used_tokens()

    def cached(self) -> int:
        """See `Backend`."""
        return self._chains.tokens

    def trim(self, limit: int) -> None:
        """See `Backend`."""
        self._chains.shrink(max(0, limit))

    def clear(self) -> None:
        """See `Backend`."""
        self._rows.clear()
        self._chains.clear()


def _passes(chains: list[tuple[Chain, int]]) -> list[list[Segment]]:
    """Cut what is not done of some chains into passes of at most `_PASS_TOKENS` tokens."""
    passes: list[list[Segment]] = [[]]
    room = _PASS_TOKENS
    for chain, end in chains:
        start = chain.done
        while start < end:
            if not room:
                passes.append([])
                room = _PASS_TOKENS
            stop = min(end, start + room)
            passes[-1].append(Segment(chain, start, stop))
            room -= stop - start
            start = stop
    return [pieces for pieces in passes if pieces]
