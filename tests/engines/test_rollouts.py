"""Rollouts are draws from the very distribution that was asked for."""

from __future__ import annotations

import asyncio
from collections import Counter

import numpy as np
import pytest
from unmask_server.engines.base import FinishReason, SampleRequest, Sampling
from unmask_server.engines.transformers.sampling import uniforms

from tests.engines.helpers import STOP, collect, exact_outcomes, naive_probs, tokens
from tests.engines.models import dense

FAMILIES = ["qwen2", "llama", "gemma2", "gemma3", "mamba"]


def by_hand(model, request: SampleRequest, sampling: Sampling, stop_ids: frozenset[int]):
    """One request, by the definition: no cache, no batch, one uniform number a token."""
    path: list[int] = []
    for step in range(request.max_new_tokens):
        logits = dense(model, [*request.prompt, *request.forced, *path])[-1]
        cumulative = np.cumsum(naive_probs(logits, sampling))
        u = uniforms(np.array([request.seed]), np.array([step]))[0]
        path.append(int(np.searchsorted(cumulative, u * cumulative[-1], side="right")))
        if path[-1] in stop_ids:
            return tuple(path), FinishReason.STOP
    return tuple(path), FinishReason.LENGTH


@pytest.mark.parametrize("family", FAMILIES)
async def test_every_rollout_equals_the_one_computed_by_hand(family, open_engine, plain):
    """Prefixes of all kinds at once: equal, nested, parting early or late, alone, one token."""
    engine = open_engine(family, max_batch=24)
    size = engine.info.vocab_size
    long, other = tokens(90, size, 1), tokens(70, size, 2)
    prefixes = [long] * 5 + [long[:n] for n in (1, 2, 17, 40, 89)]
    prefixes += [long[:60] + tokens(n, size, n) for n in (1, 2, 3, 8, 70)]
    prefixes += [other, other[:30] + tokens(66, size, 3), tokens(3, size, 4)]
    prefixes += [other[:30] + tokens(66, size, 3)[:n] + (5, 6) for n in (64, 65, 66, 40, 10)]
    requests = [
        SampleRequest(p[: len(p) // 2], p[len(p) // 2 :], 1 + i % 14, seed=i - 3)
        for i, p in enumerate(prefixes * 2)
    ]
    sampling = Sampling(0.9, 0.95, 30)
    for request, sample in zip(requests, await collect(engine, requests, sampling), strict=True):
        tokens_by_hand, finish = by_hand(plain(family), request, sampling, STOP)
        assert sample.tokens == tokens_by_hand
        assert sample.finish is finish
    assert engine.stats.rollouts_finished == len(requests)


@pytest.mark.parametrize(
    "sampling",
    [Sampling(), Sampling(0.6), Sampling(top_k=4), Sampling(1.4, 0.7), Sampling(0.8, 0.9, 8)],
)
async def test_outcomes_follow_the_enumerated_distribution(sampling, open_engine, plain):
    engine, n = open_engine("qwen2", max_batch=256), 6000
    prefix = tokens(9, 60, 5)
    exact = exact_outcomes(plain("qwen2"), prefix, 2, sampling)
    assert sum(exact.values()) == pytest.approx(1)
    requests = [SampleRequest(prefix[:4], prefix[4:], 2, seed) for seed in range(n)]
    counts = Counter(sample.tokens for sample in await collect(engine, requests, sampling))
    assert set(counts) <= set(exact)
    # Outcomes expected fewer than 8 times are taken together.
    common = [path for path, p in exact.items() if p * n >= 8]
    observed = np.array([counts[path] for path in common], float)
    expected = np.array([exact[path] * n for path in common])
    rest = n - expected.sum()
    if rest >= 8:
        observed, expected = np.append(observed, n - observed.sum()), np.append(expected, rest)
    freedom = len(expected) - 1
    chi_square = float(((observed - expected) ** 2 / expected).sum())
    assert chi_square < freedom + 3.5 * np.sqrt(2 * freedom) + 4


async def test_a_seed_gives_the_same_tokens_alone_and_among_others(open_engine):
    engine = open_engine(max_batch=16)
    prefix = tokens(50, 60, 6)
    requests = [SampleRequest(prefix[:20], prefix[20 : 20 + i], 12, seed=i) for i in range(30)]
    together = await collect(engine, requests)
    for i in (0, 7, 29):
        fresh = open_engine(max_batch=1)
        assert (await collect(fresh, [requests[i]]))[0].tokens == together[i].tokens
    again = [s.tokens for s in await collect(engine, requests[::-1])]
    assert again == [s.tokens for s in reversed(together)]


async def test_equal_requests_with_other_seeds_differ_and_share_their_prefix(open_engine):
    engine = open_engine()
    prefix = tokens(101, 60, 7)
    samples = await collect(engine, [SampleRequest(prefix, (), 8, seed) for seed in range(32)])
    assert len({s.tokens for s in samples}) > 25
    # 100 tokens once, and the last one in every row's first step.
    assert engine.stats.prompt_tokens_computed == 100 + 32
    assert engine.stats.prompt_tokens_shared == 31 * 100


async def test_prefixes_of_one_trajectory_are_computed_once(open_engine):
    engine = open_engine()
    path = tokens(120, 60, 8)
    nodes = [SampleRequest(path[:20], (*path[20:n], 3 + n % 50), 4, n) for n in range(20, 120, 2)]
    await collect(engine, nodes)
    # The last token of every request goes through its first step; the rest is one path.
    assert engine.stats.prompt_tokens_computed <= 120 + len(nodes)
    before = engine.stats.prompt_tokens_computed
    await collect(engine, nodes)
    assert engine.stats.prompt_tokens_computed == before + len(nodes)


async def test_scoring_a_path_leaves_its_keys_for_sampling(open_engine):
    from unmask_server.engines.base import ScoreRequest

    engine = open_engine()
    path = tokens(80, 60, 9)
    await engine.score(ScoreRequest(path[:10], path[10:], tuple(range(71)), 5))
    before = engine.stats.prompt_tokens_computed
    await collect(engine, [SampleRequest(path[:10], path[10:n], 4, n) for n in (30, 50, 80)])
    assert engine.stats.prompt_tokens_computed == before + 3


async def test_the_stop_token_is_kept_and_the_reason_told(open_engine):
    engine = open_engine()
    prefix = tokens(10, 60, 10)
    every = frozenset(range(60))
    for sample in await collect(
        engine, [SampleRequest(prefix, (), 9, s) for s in range(5)], stop_ids=every
    ):
        assert len(sample.tokens) == 1
        assert sample.finish is FinishReason.STOP
    for sample in await collect(
        engine, [SampleRequest(prefix, (), 9, s) for s in range(5)], stop_ids=frozenset()
    ):
        assert len(sample.tokens) == 9
        assert sample.finish is FinishReason.LENGTH


async def test_a_stop_token_at_the_limit_is_a_stop(open_engine):
    engine = open_engine()
    prefix = tokens(10, 60, 10)
    (free,) = await collect(engine, [SampleRequest(prefix, (), 5, 1)], stop_ids=frozenset())
    stop = frozenset({free.tokens[-1]})
    assert free.tokens[-1] not in free.tokens[:-1]
    (sample,) = await collect(engine, [SampleRequest(prefix, (), 5, 1)], stop_ids=stop)
    assert sample == type(sample)(0, free.tokens, FinishReason.STOP)


async def test_a_stop_token_in_the_prefix_does_not_stop(open_engine):
    engine = open_engine()
    request = SampleRequest((2, 5, 2), (2,), 6, 1)
    (sample,) = await collect(engine, [request], stop_ids=frozenset({2}))
    assert len(sample.tokens) >= 1


async def test_each_caller_has_its_own_sampling_and_stops(open_engine):
    together, alone = open_engine(), open_engine()
    prefix = tokens(20, 60, 11)
    kinds = [(Sampling(0.5), frozenset({4})), (Sampling(1.5, 0.9), frozenset({5, 6}))]
    kinds += [(Sampling(top_k=3), STOP)]
    requests = [SampleRequest(prefix, (), 15, seed) for seed in range(8)]
    mixed = await asyncio.gather(*(collect(together, requests, *kind) for kind in kinds))
    for kind, samples in zip(kinds, mixed, strict=True):
        assert samples == await collect(alone, requests, *kind)


async def test_a_small_cache_changes_nothing_but_the_work(open_engine):
    wide, narrow = open_engine(), open_engine(max_cache_tokens=60)
    prefix = tokens(100, 60, 12)
    requests = [SampleRequest(prefix[:n], (), 10, n) for n in (5, 20, 40, 41, 99, 100) * 2]
    assert await collect(narrow, requests) == await collect(wide, requests)
    assert narrow.stats.cached_tokens <= 60


async def test_the_whole_context_may_be_used(open_engine, plain):
    engine = open_engine()
    prefix = tokens(500, 60, 13)
    request = SampleRequest(prefix, (), 12, 1)
    (sample,) = await collect(engine, [request], stop_ids=frozenset())
    assert sample.tokens == by_hand(plain("qwen2"), request, Sampling(), frozenset())[0]


async def test_no_requests_give_no_samples(open_engine):
    assert await collect(open_engine(), []) == []
