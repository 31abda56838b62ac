"""Models small enough to enumerate: success after every token by dynamic programming.

The next token depends on the last one; a small automaton reads the text, and a finished text
succeeds if the automaton then is in an accepting state. So the value of a prefix depends on its
last token, the automaton's state and the tokens that are left.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.coverage_nodes import LEAST_SPREAD, FloatArray, IntArray, Node

_STATES = 4
_DECIDED = 1e-3
"""Prefixes that succeed with a probability nearer to 0 or 1 than this are drawn again."""


@dataclass(frozen=True)
class Chain:
    """A random model over K tokens; token 0 ends the text where K > 2."""

    p: FloatArray
    """Shape (K, K): the next token's probabilities after each token."""
    moves: IntArray
    """Shape (states, K): the automaton's next state."""
    accepts: NDArray[np.bool_]
    """Shape (states,)."""
    length: int
    """Tokens of the longest text."""

    @property
    def ends(self) -> NDArray[np.bool_]:
        """Shape (K,): which tokens end the text."""
        k = len(self.p)
        return np.arange(k) < (1 if k > 2 else 0)

    def values(self) -> list[FloatArray]:
        """By tokens left: success of a text with this state and last token, (states, K)."""
        k = len(self.p)
        accepted = np.repeat(self.accepts[:, None].astype(np.float64), k, axis=1)
        found = [accepted]
        for _ in range(self.length):
            after = found[-1][self.moves, np.arange(k)]
            value = after @ self.p.T
            value[:, self.ends] = accepted[:, self.ends]
            found.append(value)
        return found


@dataclass(frozen=True)
class ChainNode(Node):
    """A prefix of a chain's text; its rollouts are sampled token by token."""

    chain: Chain
    state: int
    left: int
    """Tokens after the next one."""

    def wins(self, n: IntArray, rng: np.random.Generator) -> IntArray:
        """See `Node.wins`."""
        chain = self.chain
        first = np.repeat(np.arange(len(n)), n)
        last, state = first.copy(), chain.moves[self.state, first]
        live = ~chain.ends[first]
        edges = chain.p.cumsum(axis=1)
        for _ in range(self.left):
            u = rng.random(len(first))
            drawn = (edges[last] < u[:, None]).sum(axis=1).clip(max=len(chain.p) - 1)
            last = np.where(live, drawn, last)
            state = np.where(live, chain.moves[state, drawn], state)
            live &= ~chain.ends[last]
        won = np.zeros(len(n), dtype=np.int64)
        np.add.at(won, first[chain.accepts[state]], 1)
        return won


def chain_node(seed: int, k: int) -> ChainNode:
    """A prefix of a random chain over `k` tokens; equal arguments give equal nodes."""
    rng = np.random.default_rng((seed, k, 11))
    while True:
        chain = _random_chain(k, rng)
        depth = int(rng.integers(0, chain.length - 1))
        last, state = int(rng.integers(k)), 0
        for _ in range(depth):
            last = int(rng.choice(k, p=chain.p[last]))
            state = int(chain.moves[state, last])
        p, left = chain.p[last], chain.length - depth - 1
        s = chain.values()[left][chain.moves[state], np.arange(k)]
        is_open = _DECIDED < p @ s < 1.0 - _DECIDED and not chain.ends[last]
        if is_open and 1.0 - p.max() >= LEAST_SPREAD:
            break
    t = p * np.exp(rng.normal(0.0, rng.choice([0.3, 1.0]), k))
    p, t, s = (np.append(part, 0.0) for part in (p, t / t.sum(), s))
    ends = np.append(chain.ends, False)
    return ChainNode(f"{seed}", p, p, t, s, ends, chain, state, left)


def _random_chain(k: int, rng: np.random.Generator) -> Chain:
    base = rng.dirichlet(np.ones(k)) + 1e-3
    p = rng.dirichlet(base / base.sum() * k * rng.choice([0.1, 0.3, 1.0]), size=k).clip(1e-9)
    p /= p.sum(axis=1, keepdims=True)
    # Most tokens change nothing; some states cannot be left.
    stays = rng.random((_STATES, k)) < rng.choice([0.3, 0.6, 0.9])
    moves = np.where(stays, np.arange(_STATES)[:, None], rng.integers(_STATES, size=(_STATES, k)))
    moves[-1] = _STATES - 1
    accepts = np.zeros(_STATES, dtype=bool)
    accepts[rng.permutation(_STATES)[: rng.integers(1, _STATES)]] = True
    return Chain(p, moves, accepts, int(rng.integers(3, 9)))
