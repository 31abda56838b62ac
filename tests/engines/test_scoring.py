"""Scores are the model's own distributions."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from unmask_server.engines.base import RAW, ZERO_LOGPROB, Sampling, ScoreRequest

from tests.engines.helpers import naive_probs, tokens
from tests.engines.models import dense

FAMILIES = ["qwen2", "llama", "gemma2", "gemma3", "mamba"]


@pytest.mark.parametrize("family", FAMILIES)
async def test_every_position_equals_the_models_own_log_softmax(family, open_engine, plain):
    engine = open_engine(family)
    ids = tokens(50, engine.info.vocab_size)
    want = dense(plain(family), list(ids)).log_softmax(-1).numpy()
    got = await engine.score(
        ScoreRequest(ids[:20], ids[20:], tuple(range(31)), engine.info.vocab_size)
    )
    assert len(got) == 31
    for position, answer in enumerate(got):
        row = want[19 + position]
        assert sorted(answer.ids.tolist()) == list(range(engine.info.vocab_size))
        np.testing.assert_allclose(answer.logprobs[0], row[answer.ids], atol=3e-6)


async def test_plain_families_are_not_recomputed_and_others_are(open_engine):
    assert [open_engine(family).recomputes for family in FAMILIES] == [False] * 4 + [True]


async def test_an_empty_prompt_conditions_on_the_continuation_alone(open_engine, plain):
    engine = open_engine()
    ids = tokens(10, 60)
    (answer,) = await engine.score(ScoreRequest((), ids, (4,), 60))
    want = dense(plain("qwen2"), list(ids[:4]))[-1].log_softmax(-1).numpy()
    np.testing.assert_allclose(answer.logprobs[0], want[answer.ids], atol=2e-6)


@pytest.mark.parametrize(
    "view",
    [
        Sampling(0.7),
        Sampling(1.0, 0.6),
        Sampling(1.0, 1.0, 5),
        Sampling(1.6, 0.8, 12),
        Sampling(1.0, 1.0, 10_000),
        Sampling(1e-9),
    ],
)
async def test_views_are_cut_and_renormalised(view, open_engine, plain):
    engine = open_engine()
    ids = tokens(12, 60)
    (answer,) = await engine.score(ScoreRequest(ids, (), (0,), 60, (RAW, view)))
    logits = dense(plain("qwen2"), list(ids))[-1]
    want = naive_probs(logits, view)[answer.ids]
    np.testing.assert_allclose(np.exp(answer.logprobs[1]), want, atol=2e-6)
    assert (answer.logprobs[1][want == 0] == np.float32(ZERO_LOGPROB)).all()
    assert np.exp(answer.logprobs[1].astype(float)).sum() == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(
        answer.logprobs[0], logits.log_softmax(-1).numpy()[answer.ids], atol=2e-6
    )


async def test_ids_are_the_likeliest_first_then_the_extra_ones_once(open_engine, plain):
    engine = open_engine()
    ids = tokens(12, 60)
    order = dense(plain("qwen2"), list(ids))[-1].argsort(descending=True).tolist()
    also = (order[1], order[30], order[40], order[30])
    (answer,) = await engine.score(ScoreRequest(ids, (), (0,), 4, also=(also,)))
    assert answer.ids.tolist() == [*order[:4], order[30], order[40]]
    (none,) = await engine.score(ScoreRequest(ids, (), (0,), 0))
    assert none.ids.shape == (0,)
    assert none.logprobs.shape == (1, 0)
    assert await engine.score(ScoreRequest(ids, (), (), 4)) == []


async def test_asking_again_for_other_ids_does_not_run_the_model(open_engine):
    engine = open_engine()
    ids = tokens(40, 60)
    first = await engine.score(ScoreRequest(ids[:10], ids[10:], tuple(range(31)), 3))
    before = engine.stats
    again = await engine.score(
        ScoreRequest(ids[:10], ids[10:], (4, 17), 60, (RAW, Sampling(0.5)), ((1,), (2,)))
    )
    after = engine.stats
    assert after.prefill_passes == before.prefill_passes
    assert after.scores_remembered == before.scores_remembered + 1
    for position, answer in zip((4, 17), again, strict=True):
        assert answer.ids[:3].tolist() == first[position].ids.tolist()
        np.testing.assert_allclose(answer.logprobs[0, :3], first[position].logprobs[0], atol=1e-6)


async def test_what_is_remembered_is_bounded(open_engine):
    engine = open_engine(remembered_bytes=10_000)
    for seed in range(4):
        ids = tokens(40, 60, seed)
        await engine.score(ScoreRequest(ids[:10], ids[10:], tuple(range(31)), 3))
    passes = engine.stats.prefill_passes
    await engine.score(ScoreRequest(ids[:10], ids[10:], (3,), 3))
    assert engine.stats.prefill_passes == passes
    ids = tokens(40, 60, 0)
    await engine.score(ScoreRequest(ids[:10], ids[10:], (3,), 3))
    assert engine.stats.prefill_passes == passes + 1


async def test_concurrent_requests_share_a_pass_and_answer_as_if_alone(open_engine, plain):
    engine = open_engine()
    requests = []
    for seed in range(12):
        ids = tokens(20 + seed, 60, seed // 2)  # pairs share their first tokens
        requests.append(ScoreRequest(ids[:7], ids[7:], (0, 9), 60))
    answers = await asyncio.gather(*map(engine.score, requests))
    assert engine.stats.prefill_passes < len(requests)
    for request, answer in zip(requests, answers, strict=True):
        want = dense(plain("qwen2"), [*request.prompt, *request.continuation]).log_softmax(-1)
        for position, got in zip(request.positions, answer, strict=True):
            row = want[6 + position].numpy()
            np.testing.assert_allclose(got.logprobs[0], row[got.ids], atol=3e-6)


async def test_columns_without_a_token_are_cut_off_before_the_softmax(open_engine, plain):
    engine = open_engine(vocab_size=40)
    assert engine.info.vocab_size == 40
    ids = tokens(12, 40)
    (answer,) = await engine.score(ScoreRequest(ids, (), (0,), 60))
    want = dense(plain("qwen2"), list(ids))[-1, :40].log_softmax(-1).numpy()
    assert len(answer.ids) == 40
    np.testing.assert_allclose(answer.logprobs[0], want[answer.ids], atol=2e-6)
