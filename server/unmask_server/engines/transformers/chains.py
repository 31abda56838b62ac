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
_OF_ITS_OWN = 64
"""A sequence that adds at least so much to another one gets all its keys and values in one piece,
so that rows that share it can attend to it in place."""
_CANDIDATES = 8
"""How many chains with the same whole blocks are compared token by token."""


@dataclass(eq=False, slots=True)
class Chain:
    """Keys and values of `tokens`, one pair of tensors a layer.

    A chain that adds only a little to another one (its *root*, which has none itself) holds just
    what it adds.
    """

    tokens: Tokens
    root: Chain | None = None
    offset: int = 0
    """Tokens that `root` holds; 0 without one."""
    done: int = 0
    """Tokens whose keys and values are there; the rest is being computed."""
    users: int = 0
    """Rows and kept chains that need it; it is not dropped while there are any."""
    keys: dict[int, torch.Tensor] = field(default_factory=dict)
    """By layer; shape (kv heads, tokens - offset, head size), made when first computed."""
    values: dict[int, torch.Tensor] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Tokens whose keys and values it holds itself."""
        return len(self.tokens) - self.offset

    def begin(self, source: Chain, length: int) -> None:
        """Take the first `length` tokens over from `source`: in place if little is added."""
        if len(self.tokens) - length < _OF_ITS_OWN:
            self.root = source.root if source.root is not None else source
            self.offset = length if source.root is None else min(length, source.offset)
        self.done = length
        if self.offset == length:
            return
        for layer in source.keys:
            self.write(layer, self.offset, *source.read(layer, self.offset, length))

    def write(self, layer: int, start: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Put in keys and values of tokens ``start`` on; shape (kv heads, n, head size)."""
        if layer not in self.keys:
            for store, like in ((self.keys, key), (self.values, value)):
                store[layer] = like.new_empty((like.shape[0], self.size, like.shape[-1]))
        here = slice(start - self.offset, start - self.offset + key.shape[1])
        self.keys[layer][:, here] = key
        self.values[layer][:, here] = value

    def read(self, layer: int, start: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of tokens `start` to `end`; a view where one chain holds them all."""
        cut = self.offset
        if self.root is None or start >= cut:
            here = slice(start - cut, end - cut)
            return self.keys[layer][:, here], self.values[layer][:, here]
        key, value = self.root.read(layer, start, min(end, cut))
        if end > cut:
            key = torch.cat([key, self.keys[layer][:, : end - cut]], 1)
            value = torch.cat([value, self.values[layer][:, : end - cut]], 1)
        return key, value


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
        self.tokens += chain.size
        if chain.root is not None:
            chain.root.users += 1
        for value in _block_hashes(chain.tokens):
            self._by_block.setdefault(value, {})[chain] = None

    def _drop(self, chain: Chain) -> None:
        del self._chains[chain]
        self.tokens -= chain.size
        if chain.root is not None:
            chain.root.users -= 1
        for value in _block_hashes(chain.tokens):
            bucket = self._by_block.get(value)
            if bucket is not None:
                bucket.pop(chain, None)
                if not bucket:
                    del self._by_block[value]

    def shrink(self, limit: int) -> None:
        """Drop unused chains, the least recently used first, until `limit` tokens are held."""
        # Dropping what hangs on a root frees the root: a second round finds it.
        for _ in range(2):
            if self.tokens <= limit:
                return
            for chain in [c for c in self._chains if not c.users]:
                if self.tokens <= limit:
                    return
                self._drop(chain)

    def used_tokens(self) -> int:
        """Tokens in chains that rows, or other chains, need."""
        return sum(chain.size for chain in self._chains if chain.users)

    def layers(self) -> set[int]:
        """Layers that every chain has keys of."""
        kept = [set(chain.keys) for chain in self._chains]
        return set.intersection(*kept) if kept else set()

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
