"""In which order inputs are sent, so that what they share is computed once.

SGLang's radix cache serves a prefix once some request has computed it. Requests that share a
prefix and arrive together all compute it. So a prefix that several inputs share is sent first,
alone, and they follow when it is there.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

WORTH_WARMING = 16
"""Tokens that inputs must share beyond what is warm already before a call of its own pays."""

Tokens = tuple[int, ...]


@dataclass(slots=True)
class Family:
    """Inputs that share a prefix, and the families within it that share more."""

    prefix: tuple[int, ...] = ()
    """Computed before anything of the family is sent; empty if nothing is worth it."""
    members: list[int] = field(default_factory=list)
    """Inputs to send then, by index."""
    families: list[Family] = field(default_factory=list)
    """To go on with then, each by itself."""


def plan(inputs: Sequence[Tokens]) -> list[Family]:
    """Families that between them hold every input once, in lexicographic order.

    Args:
        inputs: token ids, none empty.

    """
    order = sorted(range(len(inputs)), key=lambda i: inputs[i])
    # shared[k]: tokens that the k-th in order has in common with the one before it.
    shared = [0] * len(order)
    for k in range(1, len(order)):
        shared[k] = common(inputs[order[k - 1]], inputs[order[k]])
    return _split(inputs, order, shared, 0, len(order), 0)


def common(a: Tokens, b: Tokens) -> int:
    """How many tokens two inputs begin with in common."""
    n = min(len(a), len(b))
    if a[:n] == b[:n]:
        return n
    low, high = 0, n
    # Comparing slices is far faster than comparing tokens.
    while low + 1 < high:
        middle = (low + high) // 2
        if a[:middle] == b[:middle]:
            low = middle
        else:
            high = middle
    return low


def _split(
    inputs: Sequence[Tokens], order: list[int], shared: list[int], low: int, high: int, warm: int
) -> list[Family]:
    """Families of the inputs order[low:high], of which the first `warm` tokens are computed."""
    families: list[Family] = []
    loose = Family()
    start = low
    for k in range(low + 1, high + 1):
        if k < high and shared[k] >= warm + WORTH_WARMING:
            continue
        if k - start == 1:
            loose.members.append(order[start])
        else:
            families.append(_family(inputs, order, shared, start, k))
        start = k
    if loose.members:
        families.append(loose)
    return families


def _family(
    inputs: Sequence[Tokens], order: list[int], shared: list[int], low: int, high: int
) -> Family:
    """The family of order[low:high], which share something worth computing first."""

    def depth(k: int) -> int:
        """How many tokens the k-th shares with a neighbour within the family."""
        return max(shared[k] if k > low else 0, shared[k + 1] if k + 1 < high else 0)

    deepest = max(range(low, high), key=depth)
    family = Family(prefix=tuple(inputs[order[deepest]][: depth(deepest)]))
    # What each has in common with the deepest: the least of what lies between, going outwards.
    warm = dict.fromkeys(range(low, high), depth(deepest))
    least = len(inputs[order[deepest]])
    for k in range(deepest, low, -1):
        least = min(least, shared[k])
        warm[k - 1] = min(least, depth(deepest))
    least = len(inputs[order[deepest]])
    for k in range(deepest + 1, high):
        least = min(least, shared[k])
        warm[k] = min(least, depth(deepest))
    start = low
    for k in range(low + 1, high + 1):
        if k < high and warm[k] == warm[start]:
            continue
        for inner in _split(inputs, order, shared, start, k, warm[start]):
            if inner.prefix:
                family.families.append(inner)
            else:
                family.members.extend(inner.members)
        start = k
    return family


def reusable(inputs: Sequence[Tokens]) -> int:
    """Tokens that a cache could serve at best: all of them, less each distinct prefix once.

    The last token of an input is always computed, since what follows it depends on it.
    """
    ordered = sorted(inputs)
    total = 0
    for before, after in itertools.pairwise(ordered):
        total += min(common(before, after), len(after) - 1)
    return total
