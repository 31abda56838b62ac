"""What is shared is computed once: the order in which inputs are sent."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from hypothesis import given
from hypothesis import strategies as st
from unmask_server.engines.sglang.order import (
    WORTH_WARMING,
    Family,
    Tokens,
    common,
    plan,
    reusable,
)

# Runs of equal tokens, so that inputs share more than WORTH_WARMING tokens or just less.
runs = st.lists(st.tuples(st.integers(0, 1), st.sampled_from([1, 2, 15, 16, 17, 40])), max_size=4)
tokens = st.builds(
    lambda head, parts: (head, *(t for token, n in parts for t in (token,) * n)),
    st.integers(0, 1),
    runs,
)
short = st.lists(st.integers(0, 1), min_size=1, max_size=4).map(tuple)


def shared(a: Sequence[int], b: Sequence[int]) -> int:
    return len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False))))


def members(
    families: Sequence[Family], inputs: Sequence[Tokens], warm: tuple[Tokens, ...] = ()
) -> Iterator[tuple[int, tuple[Tokens, ...]]]:
    """Every input by index, with the prefixes that were computed before it is sent."""
    for family in families:
        there = (*warm, family.prefix)
        yield from ((index, there) for index in family.members)
        yield from members(family.families, inputs, there)


def walk(families: Sequence[Family]) -> Iterator[Family]:
    for family in families:
        yield family
        yield from walk(family.families)


@given(st.lists(tokens, max_size=12))
def test_a_plan_holds_every_input_once(inputs: list[Tokens]) -> None:
    found = [index for index, _ in members(plan(inputs), inputs)]
    assert sorted(found) == list(range(len(inputs)))


@given(st.lists(tokens, max_size=12))
def test_whoever_shares_enough_follows_a_warm_prefix(inputs: list[Tokens]) -> None:
    for index, prefixes in members(plan(inputs), inputs):
        warm = max(shared(prefix, inputs[index]) for prefix in prefixes)
        for other, given_ in enumerate(inputs):
            if other != index:
                assert shared(inputs[index], given_) < warm + WORTH_WARMING


@given(st.lists(tokens, max_size=12))
def test_only_what_two_inputs_share_is_computed_ahead(inputs: list[Tokens]) -> None:
    for family in walk(plan(inputs)):
        if family.prefix:
            n = len(family.prefix)
            assert sum(one[:n] == family.prefix for one in inputs) >= 2


@given(st.lists(tokens, max_size=12))
def test_a_prefix_adds_enough_to_what_was_warm_for_everyone_who_waits_for_it(
    inputs: list[Tokens],
) -> None:
    def check(families: Sequence[Family], warm: int) -> None:
        for family in families:
            if not family.prefix:
                assert not family.families
                continue
            below = [index for index, _ in members([family], inputs)]
            gained = [shared(family.prefix, inputs[index]) for index in below]
            assert min(gained) >= warm + WORTH_WARMING
            for inner in family.families:
                check([inner], shared(family.prefix, inner.prefix))

    check(plan(inputs), 0)


def test_the_nodes_of_a_trajectory_need_one_prefix() -> None:
    path = tuple(range(100, 600))
    nodes = [path[:n] for n in range(200, 500) for _ in range(4)]
    (family,) = plan(nodes)
    assert family.prefix == path[:499]
    assert not family.families
    assert sorted(family.members) == list(range(len(nodes)))


def test_branches_of_a_trunk_are_computed_after_it_and_each_by_itself() -> None:
    trunk = (1,) * 50
    branches = [(*trunk, b, *(b,) * 20) for b in (2, 3)]
    inputs = [(*branch, leaf) for branch in branches for leaf in (7, 8, 9)]
    (family,) = plan(inputs)
    assert family.prefix == branches[0]
    assert [sorted(family.members)] == [[0, 1, 2]]
    (other,) = family.families
    assert other.prefix == branches[1]
    assert sorted(other.members) == [3, 4, 5]


def test_unrelated_inputs_wait_for_nothing() -> None:
    (family,) = plan([(n, *range(30)) for n in range(5)])
    assert family.prefix == ()
    assert sorted(family.members) == list(range(5))


def test_thousands_of_long_inputs_are_planned_without_recursing_deeply() -> None:
    # Each shares 16 tokens more with the next one than that with the one after it.
    inputs = [(1,) * (WORTH_WARMING * n) + (2,) * 8 for n in range(1, 1500)]
    found = [index for index, _ in members(plan(inputs), inputs)]
    assert sorted(found) == list(range(len(inputs)))


@given(tokens, tokens)
def test_common_is_what_two_inputs_begin_with(a: Tokens, b: Tokens) -> None:
    assert common(a, b) == shared(a, b)


def served(inputs: Sequence[Tokens]) -> int:
    """Tokens that a cache serves when inputs come one after another; the last is computed."""
    cache: set[Tokens] = set()
    total = 0
    for one in inputs:
        prefixes = [one[: n + 1] for n in range(len(one))]
        total += sum(prefix in cache for prefix in prefixes[:-1])
        cache.update(prefixes)
    return total


@given(st.lists(short, max_size=5))
def test_reusable_is_what_the_best_order_gives(inputs: list[Tokens]) -> None:
    assert reusable(inputs) == max(map(served, itertools.permutations(inputs)))


@given(st.lists(tokens, max_size=10))
def test_reusable_is_what_a_trie_saves_in_lexicographic_order(inputs: list[Tokens]) -> None:
    assert reusable(inputs) == served(sorted(inputs))
