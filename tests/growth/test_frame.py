"""The nodes of a growth in one row: counted on, they are what they would be if laid out anew."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from unmask_server.diagnosis import Counts
from unmask_server.growth.frame import Frame, Place
from unmask_server.growth.lengths import Lengths
from unmask_server.nodes.evidence import Evidence, Scores
from unmask_server.tree import SeenLengths

GROUP = np.zeros(1, dtype=np.int64)
TOKENS = (3, 5)


def path(free: bool = False) -> Any:
    """Two nodes: before token 3, and after it."""
    nodes = SimpleNamespace(positions=(0, 1), tokens=TOKENS, prompt=(1, 2))
    return SimpleNamespace(
        nodes=nodes, free=free, tree=SimpleNamespace(id=7), key=lambda i: (7, TOKENS[:i])
    )


def at(position: int, ids: list[int], n: list[float], won: list[float], end: int = -2) -> Evidence:
    p = np.arange(len(ids) + 1, 0.0, -1.0)
    ends = np.array([token == end for token in [*ids, -1]])
    counts = Counts(np.array(n), np.array(won), ends & (np.array(n) > 0))
    scores = Scores(
        np.array(ids, dtype=np.int32), sampling=p / p.sum(), student={}, teachers=(), noise=(),
        listed=(), named=frozenset(),
    )  # fmt: skip
    return Evidence(position, None, scores, counts, counts, ends, np.zeros(len(n)))


FIRST = at(0, [3, 4], [5, 2, 1], [4, 1, 0])
BELOW = at(1, [5, 6, 9], [3, 2, 0, 0], [3, 1, 0, 0], end=9)


def frame(paths: list[Any], found: dict[Place, Evidence]) -> Frame:
    steps = {}
    for place, one in found.items():
        leans = np.arange(len(one.counts.n))[None]
        steps[place] = np.ones(leans.shape), np.ones(1, dtype=bool), leans
    lengths = {7: Lengths(SeenLengths([10], [], []), 50)}
    return Frame(paths, found, steps, lengths, GROUP)


def test_a_token_leads_to_the_node_below_and_shared_nodes_count_twice() -> None:
    both = {(p, i): one for p in (0, 1) for i, one in enumerate((FIRST, BELOW))}
    problem, _ = frame([path(), path()], both).laid(Counter())
    assert problem.nodes == 2
    assert problem.weight.tolist() == [2.0, 2.0]
    assert problem.child.tolist() == [1, -1, -1, -1, -1, -1, -1]
    assert problem.n[:3].tolist() == [5.0, 2.0, 1.0]


def test_counted_on_is_as_laid_out_anew() -> None:
    moved = at(1, [5, 6, 9], [9, 4, 0, 1], [8, 1, 0, 0], end=9)
    kept = frame([path()], {(0, 0): FIRST, (0, 1): BELOW})
    assert kept.take({(0, 1): moved})
    anew = frame([path()], {(0, 0): FIRST, (0, 1): moved})
    pending = Counter({(0, 0, None): 12, (0, 1, 6): 3})
    (a, items), (b, others) = kept.laid(pending), anew.laid(pending)
    assert items == others == [(0, 1, 9)]
    for name in ("start", "p", "n", "reward_sum", "known", "child", "tokens", "weight", "leans"):
        assert np.array_equal(getattr(a, name), getattr(b, name)), name


def test_rollouts_under_way_count_as_what_is_expected_of_them() -> None:
    one = frame([path()], {(0, 0): FIRST, (0, 1): BELOW})
    before, _ = one.laid(Counter())
    after, items = one.laid(Counter({(0, 0, None): 6, (0, 1, 9): 1, (0, 1, 77): 2}))
    added = after.n - before.n
    assert added[:3] == pytest.approx(6.0 * before.p[:3])
    # An end token has nothing to add, and is under way; what is no candidate is of the tail.
    assert added[3:].tolist() == [0.0, 0.0, 0.0, 2.0]
    assert items == []


def test_other_candidates_need_another_frame() -> None:
    one = frame([path()], {(0, 0): FIRST, (0, 1): BELOW})
    wider = replace(FIRST, scores=at(0, [3, 8], [5, 2, 1], [4, 1, 0]).scores)
    assert not one.take({(0, 0): wider})


def test_paths_that_are_free_have_no_nodes_here() -> None:
    one = frame([path(free=True), path()], {(1, 0): FIRST, (1, 1): BELOW})
    problem, _ = one.laid(Counter({(0, 0, None): 50}))
    assert one.places == [(1, 0), (1, 1)]
    assert problem.n[:3].tolist() == [5.0, 2.0, 1.0]
