"""The part of a tree that a batch of rollouts touches, in memory: descend, split, count.

A node stands for the edge that leads to it. Its statistics hold for every token of that edge: an
edge is split where rollouts diverge, where one ends, and before the last forced token of one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from unmask_server.tree.fingerprint import extend
from unmask_server.tree.tokens import TOKEN_BYTES, shared_tokens, token_at, tokens_in


@dataclass(slots=True)
class Stats:
    """Outcomes under one verifier of the rollouts that are valid along an edge."""

    reward_sum: float = 0.0
    forced_reward_sum: float = 0.0
    """Of those whose last forced token is the edge's first."""
    n: int = 0
    truncated: int = 0
    forced_n: int = 0
    is_stored: bool = False
    """Whether the database has a row for it."""

    def above(self) -> Stats:
        """Return those of the upper part of a split edge, and keep those of the lower part.

        Only forcing is told apart: what was the edge's first token is the upper part's.
        """
        upper = Stats(
            self.reward_sum, self.forced_reward_sum, self.n, self.truncated, self.forced_n
        )
        self.forced_n, self.forced_reward_sum = 0, 0.0
        return upper


@dataclass(slots=True, eq=False)
class RadixNode:
    """An edge and the node at its end. Its `id` stays with that end whatever is split above it."""

    id: int
    parent: RadixNode | None
    fingerprint: bytes
    """Of the prefix up to and including the edge's first token; at the root, of the empty one."""
    depth: int
    edge: bytes
    """Packed tokens."""
    stats: dict[int, Stats]
    is_new: bool
    children: dict[bytes, RadixNode] = field(default_factory=dict)
    """By first token; of a node from the database only those that the batch may meet."""
    moved: bool = False
    """Whether the edge was shortened by a split."""
    counted: bool = False
    """Whether the statistics changed."""
    _names: list[bytes] | None = None

    @property
    def above(self) -> int:
        """Depth at which the edge begins."""
        return self.depth - tokens_in(self.edge)

    def name_at(self, depth: int) -> bytes:
        """Return the fingerprint of the prefix up to a depth on this edge, its end included."""
        index = depth - self.above - 1
        if index <= 0:
            return self.fingerprint
        if self._names is None:
            self._names = [self.fingerprint]
        known = len(self._names)
        if index >= known:
            further = self.edge[TOKEN_BYTES * known : TOKEN_BYTES * (index + 1)]
            self._names += extend(self._names[-1], further)
        return self._names[index]

    def split_names(self, index: int) -> list[bytes] | None:
        """Give away the names of the first `index` tokens of the edge and keep the others."""
        if self._names is None:
            return None
        upper, self._names = self._names[:index], self._names[index:]
        return upper

    def count(self, rewards: Mapping[int, float], truncated: int, forced: bool) -> None:
        """Add a rollout that is valid along the edge; `forced`: with the first token imposed."""
        self.counted = True
        for key, reward in rewards.items():
            stats = self.stats.get(key)
            if stats is None:
                stats = self.stats[key] = Stats()
            stats.n += 1
            stats.reward_sum += reward
            stats.truncated += truncated
            if forced:
                stats.forced_n += 1
                stats.forced_reward_sum += reward


class RadixTree:
    """A root with what is below it as far as it is known; new nodes get ids from `next_id` on."""

    def __init__(self, root: RadixNode, next_id: int) -> None:
        self.root = root
        self.next_id = next_id
        self.nodes = [root]
        # Where forced prefixes end, by their tokens: most rollouts of a batch share a few of them.
        self._starts: dict[bytes, RadixNode] = {b"": root}

    def attach(self, node: RadixNode) -> None:
        """Add a node from the database below its parent."""
        assert node.parent is not None
        node.parent.children[token_at(node.edge, 0)] = node
        self.nodes.append(node)

    def insert(
        self, tokens: bytes, forced_depth: int, truncated: int, rewards: Mapping[int, float]
    ) -> tuple[RadixNode, RadixNode]:
        """Add a rollout, and return the nodes where it starts and where it ends.

        It starts before its last forced token: at depth ``max(forced_depth - 1, 0)``.
        """
        start_depth = max(forced_depth - 1, 0)
        prefix = tokens[: TOKEN_BYTES * start_depth]
        start = self._starts.get(prefix)
        if start is None:
            start = self._descend(self.root, tokens, start_depth)[-1]
            self._starts[prefix] = start
        path = self._descend(start, tokens, tokens_in(tokens))
        if forced_depth == 0:
            start.count(rewards, truncated, forced=False)
        forced = forced_depth > 0
        for node in path[1:]:
            node.count(rewards, truncated, forced)
            forced = False
        return start, path[-1]

    def _descend(self, node: RadixNode, tokens: bytes, depth: int) -> list[RadixNode]:
        """Follow `tokens` from a node to a depth; make what is missing. Return the nodes passed."""
        path = [node]
        at = node.depth
        while at < depth:
            begin = TOKEN_BYTES * at
            child = node.children.get(tokens[begin : begin + TOKEN_BYTES])
            if child is None:
                child = self._grow(node, tokens[begin : TOKEN_BYTES * depth])
            elif child.depth > depth or not tokens.startswith(child.edge, begin):
                rest = tokens[begin : TOKEN_BYTES * depth]
                child = self._split(child, shared_tokens(child.edge, rest))
            path.append(child)
            node, at = child, child.depth
        return path

    def _grow(self, node: RadixNode, edge: bytes) -> RadixNode:
        first = token_at(edge, 0)
        child = RadixNode(
            id=self._take_id(),
            parent=node,
            fingerprint=extend(node.name_at(node.depth), first)[0],
            depth=node.depth + tokens_in(edge),
            edge=edge,
            stats={},
            is_new=True,
        )
        node.children[first] = child
        self.nodes.append(child)
        return child

    def _split(self, lower: RadixNode, index: int) -> RadixNode:
        """Cut an edge after `index` of its tokens; return the new node at the cut."""
        assert lower.parent is not None
        assert 0 < index < tokens_in(lower.edge)
        begin = lower.above
        lower_fingerprint = lower.name_at(begin + index + 1)
        upper = RadixNode(
            id=self._take_id(),
            parent=lower.parent,
            fingerprint=lower.fingerprint,
            depth=begin + index,
            edge=lower.edge[: TOKEN_BYTES * index],
            stats={key: stats.above() for key, stats in lower.stats.items()},
            is_new=True,
            _names=lower.split_names(index),
        )
        lower.parent.children[token_at(upper.edge, 0)] = upper
        lower.parent = upper
        lower.fingerprint = lower_fingerprint
        lower.edge = lower.edge[TOKEN_BYTES * index :]
        lower.moved = lower.counted = True
        upper.children[token_at(lower.edge, 0)] = lower
        self.nodes.append(upper)
        return upper

    def _take_id(self) -> int:
        self.next_id += 1
        return self.next_id - 1
