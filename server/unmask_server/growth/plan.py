"""Which rollouts to sample next. Pure: numbers in, numbers out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

MIN_PROBABILITY = 1e-3
"""Equal allocation forces a candidate only if the policy or a teacher gives it so much."""


@dataclass(frozen=True, slots=True)
class PlanNode:
    """A node as the plan sees it."""

    key: Hashable
    """Equal for the same node reached through two targets."""
    valid: int
    """Rollouts that drew their next token here themselves."""
    reach: float
    """Chance that a rollout from here goes on to the next node of the path; 0 at its end."""
    flat: bool
    """Whether it is skipped: no rollout can tell anything there."""
    candidates: NDArray[np.int32]
    """Tokens that equal allocation forces, shape (c,)."""
    candidate_valid: NDArray[np.int64]
    """Rollouts valid after each of them, shape (c,)."""
    candidate_exact: NDArray[np.bool_]
    """Whether one rollout tells all (an end token, or no room for another one), shape (c,)."""


Item = tuple[int, int, int | None]
"""Where a rollout starts: path, index of the node on it, and the token forced there, if one is."""


@dataclass(slots=True)
class Plan:
    """Rollouts wanted."""

    items: list[tuple[int, int, int | None, int]] = field(default_factory=list)
    """Each an `Item` and how many."""

    def counts(self) -> Counter[Item]:
        """How many by item."""
        found: Counter[Item] = Counter()
        for path, index, token, number in self.items:
            found[path, index, token] += number
        return found

    @property
    def total(self) -> int:
        """Rollouts in all."""
        return sum(number for *_, number in self.items)

    def cut(self, limit: int) -> Plan:
        """At most `limit` rollouts, taken evenly: the shares stay, rounding favours the first."""
        total = self.total
        if total <= limit:
            return self
        cut, seen, taken = Plan(), 0, 0
        for path, index, token, number in self.items:
            seen += number
            share = -(-seen * limit // total) - taken
            if share > 0:
                cut.items.append((path, index, token, share))
                taken += share
        return cut


def plan_free(paths: Iterable[Sequence[PlanNode]], goal: int, *, reuse: bool) -> Plan:
    """Free rollouts so that every node that is not flat has `goal` valid ones.

    A rollout from a node that follows the path on to the next node is valid there, too; with
    `reuse` the plan counts on the expected number of those, and the next round makes up for what
    chance withheld. Without it every node gets its own.
    """
    plan = Plan()
    pending: dict[Hashable, float] = {}
    for p, path in enumerate(paths):
        carry = 0.0
        for i, node in enumerate(path):
            planned = pending.get(node.key, 0.0)
            coming = max(carry, planned)
            counted = int(coming + 1e-9) if reuse else int(planned)
            need = 0 if node.flat else max(0, goal - node.valid - counted)
            if need:
                plan.items.append((p, i, None, need))
            pending[node.key] = (coming if reuse else planned) + need
            carry = pending[node.key] * node.reach
    return plan


def candidate_counts(node: PlanNode, goal: int) -> int:
    """Rollouts that equal allocation of `goal` finds at a node; all of them if the goal is 0."""
    if goal == 0 or not len(node.candidates):
        return int(node.candidate_valid.sum())
    return int(np.minimum(node.candidate_valid, _wanted_each(node, goal)).sum())


def _wanted_each(node: PlanNode, goal: int) -> NDArray[np.int64]:
    return np.where(node.candidate_exact, 1, -(-goal // len(node.candidates)))


def plan_equal(paths: Iterable[Sequence[PlanNode]], goal: int) -> Plan:
    """Forced rollouts so that `goal` are spread equally over each node's candidates."""
    plan = Plan()
    seen: set[Hashable] = set()
    for p, path in enumerate(paths):
        for i, node in enumerate(path):
            if node.key not in seen:
                plan.items.extend((p, i, token, n) for token, n in _lacking(node, goal))
            seen.add(node.key)
    return plan


def _lacking(node: PlanNode, goal: int) -> list[tuple[int, int]]:
    """Rollouts that each candidate lacks so that the node has `goal`, spread equally."""
    if node.flat or not len(node.candidates):
        return []
    want = _wanted_each(node, goal) - node.candidate_valid
    pairs = zip(node.candidates.tolist(), want.tolist(), strict=True)
    return [(token, number) for token, number in pairs if number > 0]


def window_goals(path: Sequence[PlanNode], goal: int) -> list[int]:
    """What each node of a path gets so that every window of positions gets `goal` in all.

    Windows double in length: positions 0, 1-2, 3-6, 7-14, ... Within one, the nodes that are not
    flat share equally; so rollouts grow with the logarithm of a generation's length.
    """
    window = [(i + 1).bit_length() for i in range(len(path))]
    sharing = Counter(w for w, node in zip(window, path, strict=True) if not node.flat)
    return [-(-goal // max(1, sharing[w])) for w in window]


def plan_windows(paths: Iterable[Sequence[PlanNode]], goal: int) -> Plan:
    """Forced rollouts so that each window of each path has `goal`, spread equally."""
    plan = Plan()
    seen: set[Hashable] = set()
    for p, path in enumerate(paths):
        for i, (node, share) in enumerate(zip(path, window_goals(path, goal), strict=True)):
            if node.key not in seen:
                plan.items.extend((p, i, token, n) for token, n in _lacking(node, share))
            seen.add(node.key)
    return plan


def plan_round(paths: Iterable[Sequence[PlanNode]], each: int, *, forced: bool) -> Plan:
    """`each` more rollouts for every node that is not flat, whatever it has."""
    plan = Plan()
    seen: set[Hashable] = set()
    for p, path in enumerate(paths):
        for i, node in enumerate(path):
            if node.flat or node.key in seen:
                continue
            seen.add(node.key)
            if not forced:
                plan.items.append((p, i, None, each))
            elif len(node.candidates):
                plan.items.extend((p, i, token, n) for token, n in _even_shares(node, each))
    return plan


def _even_shares(node: PlanNode, each: int) -> list[tuple[int, int]]:
    """`each` rollouts over the candidates, the least known first, none where all is known."""
    done = node.candidate_exact & (node.candidate_valid > 0)
    order = np.argsort(node.candidate_valid, kind="stable")
    order = order[~done[order]]
    if not len(order):
        return []
    shares = np.full(len(order), each // len(order))
    shares[: each % len(order)] += 1
    shares = np.where(node.candidate_exact[order], np.minimum(shares, 1), shares)
    return [
        (int(node.candidates[j]), int(share))
        for j, share in zip(order, shares, strict=True)
        if share
    ]


def forced_candidates(
    ids: NDArray[np.int32],
    sampling: NDArray[np.float64],
    teachers: Sequence[NDArray[np.float64]],
    observed: int | None,
    top_k: int,
) -> NDArray[np.int32]:
    """The candidates that equal allocation forces.

    The `top_k` likeliest of the policy and of each teacher (arrays over `ids` and the tail) with at
    least `MIN_PROBABILITY`, and the observed token.
    """
    chosen = np.zeros(len(ids), dtype=bool)
    for probabilities in (sampling, *teachers):
        p = probabilities[: len(ids)]
        top = np.argsort(-p, kind="stable")[:top_k]
        chosen[top[p[top] >= MIN_PROBABILITY]] = True
    # What the policy never draws has no success to estimate that would enter a gradient.
    chosen &= sampling[: len(ids)] > 0
    if observed is not None:
        chosen |= ids == observed
    return ids[chosen]
