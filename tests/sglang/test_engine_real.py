"""The engine on a real SGLang says and samples what transformers does on the same checkpoint."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from transformers import AutoModelForCausalLM
from unmask_server.engines.base import (
    RAW,
    BadRequestError,
    EngineError,
    FinishReason,
    PositionScores,
    SampleRequest,
    Sampling,
    ScoreRequest,
)
from unmask_server.engines.sglang import Serving, SglangEngine, inspect
from unmask_server.engines.sglang.launch import ManagedSglang
from unmask_server.engines.sglang.order import reusable
from unmask_server.engines.transformers import TransformersEngine

from tests.engines.helpers import collect, naive_probs
from tests.engines.models import dense
from tests.sglang.conftest import PADDING
from tests.sglang.real import real
from tests.tiny import WORDS

pytestmark = pytest.mark.sglang

WORD_COUNT = len(WORDS)
COLUMNS = {"plain": WORD_COUNT, "padded": WORD_COUNT + PADDING}
CONTEXT = 256
EOS = 0
VIEWS = (
    (RAW,),
    (Sampling(0.5), RAW, Sampling(2.0)),
    (Sampling(0.7, top_p=0.8), Sampling(1.3, top_k=5), Sampling(1.0, top_p=0.3)),
    (Sampling(0.8, 0.7, 6, joint=True),),
)


def ids(n: int, seed: int) -> tuple[int, ...]:
    return tuple(np.random.default_rng(seed).integers(1, WORD_COUNT, n).tolist())


@pytest.fixture(params=["plain", "padded"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def serving(servers: dict[str, ManagedSglang], name: str) -> Serving:
    return await inspect([servers[name].url], columns=COLUMNS[name], usable=WORD_COUNT)


@pytest.fixture
async def engine(
    servers: dict[str, ManagedSglang], serving: Serving, name: str
) -> AsyncIterator[SglangEngine]:
    made = SglangEngine(
        [servers[name].url], serving, columns=COLUMNS[name], usable=WORD_COUNT, max_context=CONTEXT
    )
    yield made
    await made.close()


@pytest.fixture
async def peer(tiny_models: dict[str, Path], name: str) -> AsyncIterator[TransformersEngine]:
    made = TransformersEngine.load(tiny_models[name], threads=1, vocab_size=WORD_COUNT)
    yield made
    await made.close()


@pytest.fixture
def plain_model(tiny_models: dict[str, Path], name: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_models[name]).eval()


def assert_same(ours: list[PositionScores], theirs: list[PositionScores]) -> None:
    """The same ids in the same order, and log-probabilities to float32's precision."""
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.ids.tolist() == b.ids.tolist()
        np.testing.assert_allclose(np.exp(a.logprobs), np.exp(b.logprobs), atol=2e-6)
        possible = b.logprobs > -40
        np.testing.assert_allclose(a.logprobs[possible], b.logprobs[possible], atol=1e-4)


@pytest.mark.parametrize("top_k", [1, 8, 1000])
@pytest.mark.parametrize("views", VIEWS)
async def test_scores_are_those_of_transformers_at_every_position(
    engine: SglangEngine, peer: TransformersEngine, views: tuple[Sampling, ...], top_k: int
) -> None:
    path = ids(30, 2)
    request = ScoreRequest(
        ids(12, 1), path, tuple(range(31)), min(top_k, WORD_COUNT), views,
        tuple(ids(3, 50 + t) for t in range(31)),
    )  # fmt: skip
    assert_same(await engine.score(request), await peer.score(request))
    # One pass over the sequence for all of it.
    assert engine.scoring.calls == 1


@pytest.mark.parametrize("views", VIEWS)
async def test_a_large_vocabulary_is_scored_by_its_likeliest_ids(
    servers: dict[str, ManagedSglang],
    tiny_models: dict[str, Path],
    views: tuple[Sampling, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a model of 150,000 ids makes necessary: the rest comes by one-token requests."""
    monkeypatch.setattr("unmask_server.engines.sglang.scoring.WHOLE_VOCABULARY", 0)
    url, columns = servers["plain"].url, COLUMNS["plain"]
    serving = await inspect([url], columns=columns, usable=columns)
    engine = SglangEngine([url], serving, columns=columns, usable=columns, max_context=CONTEXT)
    peer = TransformersEngine.load(tiny_models["plain"], threads=1)
    request = ScoreRequest(
        ids(12, 3), ids(20, 4), tuple(range(0, 21, 4)), 3, views,
        tuple(ids(4, 90 + t) for t in range(6)),
    )  # fmt: skip
    assert_same(await engine.score(request), await peer.score(request))
    assert engine.scoring.small_calls > 0
    # Asked for more of the same, it only asks for what is new.
    calls = engine.scoring.calls
    await engine.score(replace(request, also=tuple(ids(5, 95 + t) for t in range(6))))
    assert engine.scoring.calls == calls
    await peer.close()
    await engine.close()


@pytest.mark.parametrize(
    "sampling",
    [RAW, Sampling(0.6), Sampling(top_k=4), Sampling(1.4, 0.7), Sampling(0.8, 0.8, 6, joint=True)],
)
async def test_rollouts_are_drawn_from_the_policy(
    engine: SglangEngine, plain_model: Any, sampling: Sampling
) -> None:
    """Two tokens deep; a padding column, however likely, is never drawn."""
    prefix, n = ids(9, 5), 1500
    requests = [SampleRequest(prefix, (), 2, seed=i) for i in range(n)]
    stop = frozenset({EOS})
    drawn = Counter(s.tokens for s in await collect(engine, requests, sampling, stop))
    expected: dict[tuple[int, ...], float] = {}
    first = naive_probs(dense(plain_model, [*prefix])[-1][:WORD_COUNT], sampling)
    for a in np.flatnonzero(first).tolist():
        if a == EOS:
            expected[a,] = float(first[a])
            continue
        second = naive_probs(dense(plain_model, [*prefix, a])[-1][:WORD_COUNT], sampling)
        for b in np.flatnonzero(second).tolist():
            expected[a, b] = float(first[a] * second[b])
    assert set(drawn) <= set(expected)
    # Outcomes too rare to count go together.
    likely = [key for key, p in expected.items() if p * n >= 8]
    p = np.array([expected[key] for key in likely] + [0.0])
    p[-1] = max(1.0 - p.sum(), 1e-9)
    seen = np.array([drawn[key] for key in likely] + [0])
    seen[-1] = n - seen.sum()
    chi_square = float((((seen - n * p) ** 2) / (n * p))[: len(p) if p[-1] * n >= 8 else -1].sum())
    freedom = len(p) - 1
    assert chi_square < freedom + 5 * np.sqrt(2 * max(freedom, 1)) + 5


async def test_a_stop_token_of_the_policy_ends_a_rollout_and_the_models_own_does_not(
    engine: SglangEngine,
) -> None:
    words = frozenset(range(1, WORD_COUNT, 2))
    requests = [SampleRequest(ids(6, 7), (), 12, seed=i) for i in range(200)]
    samples = await collect(engine, requests, Sampling(2.0), words)
    for sample in samples:
        assert not words & set(sample.tokens[:-1])
        if sample.finish is FinishReason.STOP:
            assert sample.tokens[-1] in words
        else:
            assert len(sample.tokens) == 12
            assert sample.tokens[-1] not in words
    # The model's end token is a token like any other here.
    assert any(EOS in sample.tokens[:-1] for sample in samples)


async def test_a_stop_token_at_the_limit_is_a_stop(engine: SglangEngine) -> None:
    requests = [SampleRequest(ids(6, 8), (), 1, seed=i) for i in range(100)]
    stops = frozenset(range(0, WORD_COUNT, 2))
    for sample in await collect(engine, requests, Sampling(3.0), stops):
        assert len(sample.tokens) == 1
        assert (sample.finish is FinishReason.STOP) == (sample.tokens[0] in stops)


@pytest.mark.parametrize("bad", [-1, WORD_COUNT, 10**6, 2**31, True])
async def test_no_id_out_of_range_reaches_the_server(
    engine: SglangEngine, servers: dict[str, ManagedSglang], name: str, bad: int
) -> None:
    with pytest.raises(BadRequestError):
        await collect(engine, [SampleRequest((3, bad), (), 4, 0)], RAW, frozenset({EOS}))
    with pytest.raises(BadRequestError):
        await engine.score(ScoreRequest((3,), (bad,), (0,), 4))
    with pytest.raises(BadRequestError):
        await engine.score(ScoreRequest((3,), (4,), (0,), 4, also=((bad,),)))
    restarts = servers[name].restarts
    assert (await engine.score(ScoreRequest((3,), (WORD_COUNT - 1,), (1,), 10**6)))[0].ids.size
    assert servers[name].restarts == restarts


async def test_rollouts_and_scores_at_once_do_no_harm(
    engine: SglangEngine, servers: dict[str, ManagedSglang], name: str
) -> None:
    restarts = servers[name].restarts

    async def grow(seed: int) -> int:
        wanted = [SampleRequest(ids(20, seed % 5), ids(3, seed), 20, i) for i in range(4)]
        return len(await collect(engine, wanted, Sampling(0.9), frozenset({EOS})))

    async def score(seed: int) -> int:
        request = ScoreRequest(
            ids(20, seed % 5), ids(15, seed), tuple(range(16)), 4, (RAW, Sampling(0.7)),
            tuple(ids(2, seed + t) for t in range(16)),
        )  # fmt: skip
        return len(await engine.score(request))

    done = await asyncio.gather(*(f(seed) for seed in range(100) for f in (grow, score)))
    assert sum(done) == 100 * (4 + 16)
    assert servers[name].restarts == restarts
    assert engine.replicas.retries == 0


async def test_what_siblings_and_descendants_share_comes_from_the_prefix_cache(
    engine: SglangEngine,
) -> None:
    prompt, path = ids(60, 11), ids(80, 12)
    requests = [
        SampleRequest(prompt, (*path[:t], 1 + (t + i) % 20), 4, i)
        for t in range(0, 80, 5)
        for i in range(6)
    ]
    await collect(engine, requests, RAW, frozenset({EOS}))
    could = reusable([(*r.prompt, *r.forced) for r in requests])
    assert engine.rollouts.stats.cached_tokens >= 0.95 * could


async def test_a_server_killed_by_somebody_else_costs_a_retry(
    tiny_models: dict[str, Path],
) -> None:
    """An id out of range in a foreign request kills SGLang while our rollouts run."""
    async with ManagedSglang(real(tiny_models["plain"])) as server:
        await server.ready()
        columns = COLUMNS["plain"]
        serving = await inspect([server.url], columns=columns, usable=columns)
        engine = SglangEngine(
            [server.url], serving, columns=columns, usable=columns, max_context=CONTEXT
        )
        requests = [SampleRequest(ids(10, i), (), 200, i) for i in range(60)]
        running = asyncio.create_task(collect(engine, requests, RAW, frozenset()))
        while not any(replica.in_flight for replica in engine.replicas.all):  # noqa: ASYNC110
            await asyncio.sleep(0)
        async with aiohttp.ClientSession() as session:
            killer = {"input_ids": [3, 10**6], "sampling_params": {"max_new_tokens": 1}}
            with pytest.raises(aiohttp.ClientError):
                async with session.post(f"{server.url}/generate", json=killer) as response:
                    response.raise_for_status()
        samples = await running
        assert [len(sample.tokens) for sample in samples] == [200] * 60
        assert server.restarts == 1
        assert engine.replicas.retries > 0
        await engine.close()


async def test_new_weights_are_noticed(
    tiny_models: dict[str, Path], servers: dict[str, ManagedSglang]
) -> None:
    url, columns = servers["plain"].url, COLUMNS["plain"]
    serving = await inspect([url], columns=columns, usable=columns)
    engine = SglangEngine([url], serving, columns=columns, usable=columns, max_context=CONTEXT)

    async def rename(version: str) -> None:
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{url}/update_weight_version", json={"new_version": version}) as answer,
        ):
            answer.raise_for_status()

    await rename("v2")
    try:
        with pytest.raises(EngineError, match="version 'v2'"):
            await collect(engine, [SampleRequest((3, 4), (), 4, 0)], RAW, frozenset({EOS}))
        with pytest.raises(EngineError, match="version 'v2'"):
            await engine.score(ScoreRequest((3,), (4,), (0, 1), 4))
    finally:
        await rename(serving.weight_version)
    assert await collect(engine, [SampleRequest((3, 4), (), 4, 0)], RAW, frozenset({EOS}))
    await engine.close()
