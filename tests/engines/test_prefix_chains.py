"""Every distinct token of what is asked for is computed once, and memory stays bounded."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from unmask_server.engines.transformers.chains import (
    BLOCK,
    Chain,
    ChainCache,
    Tokens,
    common_prefix,
    plan,
)


def sequence(*blocks: int, tail: int = 0) -> Tokens:
    """Blocks of equal tokens, then a few others."""
    return np.concatenate([np.full(BLOCK, b, np.int32) for b in blocks] + [np.arange(tail)]).astype(
        np.int32
    )


def distinct_tokens(contexts: list[Tokens]) -> int:
    """Nodes of the tree of all prefixes."""
    return len({context[:n].tobytes() for context in contexts for n in range(1, len(context) + 1)})


def fill(chain: Chain) -> None:
    """Stand in for the model: the key of a token is the token, the value its place."""
    places = torch.arange(len(chain.tokens)).float()[None, :, None]
    tokens = torch.from_numpy(chain.tokens).float()[None, :, None]
    chain.write(0, chain.done, tokens[:, chain.done :], places[:, chain.done :])
    chain.done = len(chain.tokens)


def compute(contexts: list[Tokens], cache: ChainCache) -> tuple[int, int]:
    """Follow a plan. Returns tokens computed and levels."""
    places, wanted = plan(contexts, cache)
    for item in wanted:
        if item.source is not None:
            assert item.source.done == len(item.source.tokens)
            item.chain.begin(item.source, item.shared)
        fill(item.chain)
    for item in wanted:
        cache.add(item.chain)
    for context, (chain, length) in zip(contexts, places, strict=True):
        assert length == len(context)
        keys, values = chain.read(0, 0, length)
        assert keys[0, :, 0].tolist() == context.tolist()
        assert values[0, :, 0].tolist() == list(range(length))
    return (
        sum(len(item.chain.tokens) - item.shared for item in wanted),
        max((item.level for item in wanted), default=-1) + 1,
    )


@pytest.mark.parametrize("seed", range(8))
def test_each_node_of_the_prefix_tree_is_computed_once(seed):
    rng = np.random.default_rng(seed)
    contexts = [sequence(*rng.integers(0, 3, rng.integers(1, 9)).tolist()) for _ in range(60)]
    cache = ChainCache()
    first, _ = compute(contexts[:30], cache)
    assert first == distinct_tokens(contexts[:30])
    second, _ = compute(contexts, cache)
    assert second <= distinct_tokens(contexts)
    assert compute(contexts, cache) == (0, 0)


def test_prefixes_of_one_path_need_one_chain_and_one_pass():
    path = sequence(*range(10))
    assert compute([path[:n] for n in range(1, 161)], ChainCache()) == (160, 1)


def test_a_shared_beginning_is_computed_first_and_all_branches_together():
    contexts = [sequence(1, 2, 3, branch, tail=branch) for branch in range(4, 20)]
    assert compute(contexts, ChainCache()) == (distinct_tokens(contexts), 2)


def test_sharing_less_than_a_block_is_not_worth_a_pass():
    contexts = [np.array([7, *range(n, n + 30)], np.int32) for n in (100, 200, 300)]
    assert compute(contexts, ChainCache()) == (93, 1)


def test_a_little_more_is_kept_as_just_that():
    cache = ChainCache()
    long = sequence(*range(8))
    compute([long], cache)
    compute([np.append(long, np.int32(99))], cache)
    assert cache.tokens == len(long) + 1
    # And what hangs on that hangs on the root.
    compute([np.append(long, np.array([99, 98, 97], np.int32))], cache)
    assert cache.tokens == len(long) + 1 + 3


def test_what_is_unused_goes_first_and_what_is_used_stays():
    cache = ChainCache()
    first, second, third = (sequence(b, b + 1, b + 2) for b in (10, 20, 30))
    compute([first], cache)
    compute([second], cache)
    compute([third], cache)
    used, _ = cache.find(first)
    assert used is not None
    used.users += 1
    cache.shrink(100)
    assert cache.find(first)[1] == 48
    assert cache.find(second)[1] == 0
    assert cache.find(third)[1] == 48
    cache.shrink(0)
    assert (cache.tokens, cache.used_tokens()) == (48, 48)
    used.users -= 1
    cache.shrink(0)
    assert cache.tokens == 0


def test_a_root_stays_as_long_as_something_hangs_on_it():
    cache = ChainCache()
    long = sequence(*range(4))
    compute([long], cache)
    compute([np.append(long, np.int32(99))], cache)
    leaf, _ = cache.find(np.append(long, np.int32(99)))
    assert leaf is not None
    leaf.users += 1
    cache.shrink(0)
    assert cache.tokens == 65
    leaf.users -= 1
    cache.shrink(0)
    assert cache.tokens == 0


def test_common_prefix():
    a = np.array([1, 2, 3], np.int32)
    assert common_prefix(a, a) == 3
    assert common_prefix(a, a[:2]) == 2
    assert common_prefix(a, np.array([1, 9, 3], np.int32)) == 1
    assert common_prefix(a, a[:0]) == 0
