"""Token sequences whose keys and values are kept, and how they are found again.

A *chain* holds the keys and values of one sequence from its first token on. Sequences that begin
alike share a chain up to where they part; the chains are the leaves of the tree of all prefixes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

Tokens = NDArray[np.int32]
BLOCK = 16
"""Prefixes are looked up in steps of this many tokens, and shorter ones are not worth sharing."""
_CANDIDATES = 8
"""How many chains with the same whole blocks are compared token by token."""


@dataclass(eq=False, slots=True)
class Chain:
    """Keys and values of `tokens`, one pair of tensors a layer."""

    tokens: Tokens
    done: int = 0
    """Tokens whose keys and values are there; the rest is being computed."""
    users: int = 0
    """Rows that attend to it; it is not dropped while there are any."""
    keys: dict[int, torch.Tensor] = field(default_factory=dict)
    """By layer; shape (kv heads, tokens, head size), made when a layer is first computed."""
    values: dict[int, torch.Tensor] = field(default_factory=dict)

    def copy_prefix(self, source: Chain, length: int) -> None:
        """Take the first `length` tokens' keys and values over from `source`."""
        for mine, theirs in ((self.keys, source.keys), (self.values, source.values)):
            for layer, tensor in theirs.items():
                heads, _, size = tensor.shape
                mine[layer] = tensor.new_empty((heads, len(self.tokens), size))
                mine[layer][:, :length] = tensor[:, :length]
        self.done = length

    def write(self, layer: int, start: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Put in what a layer computed for tokens ``start`` on; shape (kv heads, n, head size)."""
        if layer not in self.keys:
            heads, _, size = key.shape
            self.keys[layer] = key.new_empty((heads, len(self.tokens), size))
            self.values[layer] = value.new_empty((heads, len(self.tokens), value.shape[-1]))
        end = start + key.shape[1]
        self.keys[layer][:, start:end] = key
        self.values[layer][:, start:end] = value


def common_prefix(a: Tokens, b: Tokens) -> int:
    """How many tokens two sequences share from the start."""
    n = min(len(a), len(b))
    differ = a[:n] != b[:n]
    first = int(differ.argmax()) if n else 0
    return first if n and differ[first] else n


def _block_hashes(tokens: Tokens) -> Iterator[int]:
    """One value a whole block, each depending on all tokens before it."""
    data, step, before = tokens.tobytes(), 4 * BLOCK, 0
    for start in range(0, len(data) - step + 1, step):
        before = hash((before, data[start : start + step]))
        yield before


class ChainCache:
    """The chains that are kept, by prefix; the least recently used unused ones go first."""

    def __init__(self) -> None:
        self._chains: OrderedDict[Chain, None] = OrderedDict()
        self._by_block: dict[int, dict[Chain, None]] = {}
        self.tokens = 0
        """Held in all chains together."""

    def find(self, tokens: Tokens) -> tuple[Chain | None, int]:
        """The chain that shares the longest prefix with `tokens`, and how long that is.

        Hashes find, tokens verify: the length is exact. Less than a block counts as nothing.
        """
        bucket: dict[Chain, None] | None = None
        for value in _block_hashes(tokens):
            deeper = self._by_block.get(value)
            if deeper is None:
                break
            bucket = deeper
        best, length = None, 0
        for _, chain in zip(range(_CANDIDATES), reversed(bucket or {}), strict=False):
            shared = common_prefix(tokens, chain.tokens[: chain.done])
            if shared > length:
                best, length = chain, shared
                if shared == len(tokens):
                    break
        if best is None or length < BLOCK:
            return None, 0
        self._chains.move_to_end(best)
        return best, length

    def add(self, chain: Chain) -> None:
        """Keep a chain, whole from now on."""
        self._chains[chain] = None
        self.tokens += len(chain.tokens)
        for value in _block_hashes(chain.tokens):
            self._by_block.setdefault(value, {})[chain] = None

    def _drop(self, chain: Chain) -> None:
        del self._chains[chain]
        self.tokens -= len(chain.tokens)
        for value in _block_hashes(chain.tokens):
            bucket = self._by_block.get(value)
            if bucket is not None:
                bucket.pop(chain, None)
                if not bucket:
                    del self._by_block[value]

    def shrink(self, limit: int) -> None:
        """Drop unused chains, the least recently used first, until `limit` tokens are held."""
        if self.tokens <= limit:
            return
        for chain in [c for c in self._chains if not c.users]:
            self._drop(chain)
            if self.tokens <= limit:
                return

    def used_tokens(self) -> int:
        """Tokens in chains that rows attend to."""
        return sum(len(chain.tokens) for chain in self._chains if chain.users)

    def clear(self) -> None:
        """Forget everything."""
        self._chains.clear()
        self._by_block.clear()
        self.tokens = 0


@dataclass(slots=True)
class Wanted:
    """A chain to be computed: where its beginning comes from, and how deep in the tree it is."""

    chain: Chain
    source: Chain | None
    shared: int
    level: int


def plan(contexts: list[Tokens], cache: ChainCache) -> tuple[list[tuple[Chain, int]], list[Wanted]]:
    """Say which chains serve `contexts`, so that every distinct token is computed once.

    Sorted, a context that is the beginning of others stands right before them; only the last of
    such a run needs a chain. Each chain takes over what it shares with the leftmost chain that
    passes the same tree node, so the levels are as few as the branchings above each other.

    Returns: for each context its chain and how many of its tokens the chain gives (all of them);
    and the chains that must be computed, by level.

    """
    places: list[tuple[Chain, int] | None] = [None] * len(contexts)
    missing: list[int] = []
    found: dict[int, tuple[Chain | None, int]] = {}
    seen: dict[bytes, tuple[Chain | None, int]] = {}
    keys = [context.astype(">u4").tobytes() for context in contexts]
    for i, context in enumerate(contexts):
        if keys[i] not in seen:
            seen[keys[i]] = cache.find(context)
        chain, shared = seen[keys[i]]
        if chain is not None and shared == len(context):
            places[i] = (chain, shared)
        else:
            found[i] = (chain, shared)
            missing.append(i)
    # Big-endian bytes sort as the tokens do.
    missing.sort(key=keys.__getitem__)
    wanted: list[Wanted] = []
    path: list[tuple[int, Wanted]] = []  # (depth, leftmost leaf through the node at that depth)
    waiting: list[int] = []
    for at, i in enumerate(missing):
        waiting.append(i)
        if at + 1 < len(missing) and keys[missing[at + 1]].startswith(keys[i]):
            continue
        chain = Chain(contexts[i])
        item = Wanted(chain, None, 0, 0)
        if wanted:
            shared = common_prefix(contexts[i], wanted[-1].chain.tokens)
            owner = wanted[-1]
            while path and path[-1][0] > shared:
                owner = path.pop()[1]
            if not path or path[-1][0] < shared:
                path.append((shared, owner))
            if shared >= BLOCK:
                owner = path[-1][1]
                item = Wanted(chain, owner.chain, shared, owner.level + 1)
        old, old_shared = found[i]
        if old_shared > 0 and old_shared >= item.shared:
            item = Wanted(chain, old, old_shared, 0)
        path.append((len(contexts[i]), item))
        wanted.append(item)
        for j in waiting:
            places[j] = (chain, len(contexts[j]))
        waiting.clear()
    wanted.sort(key=lambda item: item.level)
    return [place for place in places if place is not None], wanted
