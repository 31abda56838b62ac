"""The tree as it should behave, in the simplest way: a list of rollouts."""

from __future__ import annotations

from dataclasses import dataclass, field

from unmask_server.tree import FINISH_LENGTH, NewRollout, NodeCounts, TreeView


@dataclass
class NaiveTree:
    """All rollouts of a tree, in the order of insertion."""

    rollouts: list[NewRollout] = field(default_factory=list)
    verifiers: set[int] = field(default_factory=set)
    version: int = 0

    def add(self, rollouts: list[NewRollout]) -> tuple[list[bytes], list[bytes]]:
        seen = {known.uid for known in self.rollouts}
        inserted, duplicates = [], []
        for new in rollouts:
            if new.uid in seen:
                duplicates.append(new.uid)
            else:
                inserted.append(new.uid)
                self.rollouts.append(new)
                seen.add(new.uid)
        self.version += bool(inserted)
        return inserted, duplicates

    def counts(self, prefix: tuple[int, ...], verifier: int) -> dict[str, object]:
        depth = len(prefix)
        through = [r for r in self.rollouts if r.tokens[:depth] == prefix]
        valid = [r for r in through if r.forced_depth <= depth]
        children = {}
        for token in sorted({r.tokens[depth] for r in through if len(r.tokens) > depth}):
            onward = [r for r in through if r.tokens[: depth + 1] == (*prefix, token)]
            at_child = [r for r in onward if r.forced_depth <= depth + 1]
            free = [r for r in onward if r.forced_depth <= depth]
            if at_child:
                children[token] = (*_sums(at_child, verifier), *_sums(free, verifier)[:2])
        return {"node": _sums(valid, verifier), "children": children}


def _sums(rollouts: list[NewRollout], verifier: int) -> tuple[int, float, int]:
    rewards = sum(r.rewards[verifier] for r in rollouts)
    return len(rollouts), rewards, sum(r.finish == FINISH_LENGTH for r in rollouts)


def as_naive(node: NodeCounts) -> dict[str, object]:
    """Bring a node's counts into the form of `NaiveTree.counts`."""
    c = node.children
    columns = (c.n, c.reward_sum, c.truncated, c.free_n, c.free_reward_sum)
    rows = zip(c.tokens.tolist(), *(column.tolist() for column in columns), strict=True)
    return {
        "node": (node.n, node.reward_sum, node.truncated),
        "children": {token: tuple(row) for token, *row in rows},
    }


def assert_agrees(view: TreeView, model: NaiveTree, tokens: tuple[int, ...], verifier: int) -> None:
    """Compare a look-up of all that it asked for. Rewards are multiples of 1/4: sums are exact."""
    assert view.version == model.version
    for node in view.nodes:
        assert as_naive(node) == model.counts(tokens[: node.position], verifier)
