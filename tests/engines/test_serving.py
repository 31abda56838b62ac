"""One engine, many callers: batches are shared, callers may leave, failures pass."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import aclosing

import pytest
import torch
from safetensors.torch import load_file, save_file
from unmask_server.engines.base import RAW, EngineError, SampleRequest, ScoreRequest
from unmask_server.engines.transformers import TransformersEngine

from tests.engines.helpers import STOP, collect, tokens
from tests.engines.models import dense

NO_STOP = frozenset[int]()
PREFIX = tokens(20, 60, 20)


def requests(n: int, length: int = 30, seed: int = 0) -> list[SampleRequest]:
    return [SampleRequest(PREFIX, (), length, seed + i) for i in range(n)]


async def until(engine, condition) -> None:
    while not condition(engine.stats):  # noqa: ASYNC110 (the worker is a thread, not a task)
        await asyncio.sleep(0)


async def test_two_callers_share_the_steps_of_a_batch(open_engine):
    engine = open_engine(max_batch=64)
    await asyncio.gather(
        *(collect(engine, requests(8, 40, 100 * k), RAW, NO_STOP) for k in range(6))
    )
    # One after another they would take 240 steps.
    assert 40 <= engine.stats.forward_steps < 120
    assert engine.stats.tokens_sampled == 6 * 8 * 40


async def test_waiting_requests_take_the_rows_that_become_free(open_engine):
    engine = open_engine(max_batch=8)
    wanted = [SampleRequest(PREFIX, (), 2 + i % 20, i) for i in range(64)]
    await collect(engine, wanted, RAW, NO_STOP)
    total = sum(r.max_new_tokens for r in wanted)
    assert engine.stats.tokens_sampled == total
    # Batch after batch of 8 would take 20 steps or so each.
    assert engine.stats.forward_steps < 1.25 * total / 8


async def test_a_later_small_caller_does_not_wait_for_an_earlier_large_one(open_engine):
    engine = open_engine(max_batch=8)
    order: list[str] = []

    async def call(name: str, n: int) -> None:
        async for _ in engine.sample(requests(n, 10), RAW, NO_STOP):
            order.append(name)

    large = asyncio.create_task(call("large", 200))
    await until(engine, lambda stats: stats.forward_steps > 0)
    await call("small", 4)
    assert order.count("large") < 100
    await large


async def test_samples_come_as_they_finish(open_engine):
    engine = open_engine()
    wanted = [SampleRequest(PREFIX, (), n, n) for n in (40, 3, 20)]
    order = [s.index async for s in engine.sample(wanted, RAW, NO_STOP)]
    assert order == [1, 2, 0]


async def test_the_event_loop_runs_on_while_the_model_works(open_engine):
    engine = open_engine()
    task = asyncio.create_task(collect(engine, requests(16, 60), RAW, NO_STOP))
    turns = 0
    while not task.done():
        await asyncio.sleep(0)
        turns += 1
    # Were the model run on the loop, one turn a step would be the most.
    assert turns > 2 * engine.stats.forward_steps
    await task


async def test_scores_are_answered_while_rollouts_run(open_engine):
    engine = open_engine(max_batch=4)
    task = asyncio.create_task(collect(engine, requests(40, 60), RAW, NO_STOP))
    await until(engine, lambda stats: stats.forward_steps > 0)
    for seed in range(3):
        await engine.score(ScoreRequest(tokens(9, 60, seed), (), (0,), 3))
    assert not task.done()
    await task


async def test_rollouts_go_on_while_scores_keep_coming(open_engine):
    engine = open_engine()
    done = asyncio.Event()

    async def keep_scoring(worker: int) -> None:
        seed = 0
        while not done.is_set():
            seed += 1
            await engine.score(ScoreRequest(tokens(30, 60, 1000 * worker + seed), (), (0,), 3))

    scorers = [asyncio.create_task(keep_scoring(k)) for k in range(4)]
    samples = await collect(engine, requests(8, 20), RAW, NO_STOP)
    done.set()
    await asyncio.gather(*scorers)
    assert len(samples) == 8


async def test_closing_the_iterator_frees_its_rows(open_engine):
    engine = open_engine(max_batch=8)
    async with aclosing(engine.sample(requests(50, 400), RAW, NO_STOP)) as samples:
        task = asyncio.ensure_future(anext(samples))
        await until(engine, lambda stats: stats.rows_running == 8)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await until(engine, lambda stats: stats.rows_running == 0)
    assert engine.stats.rollouts_abandoned == 50
    steps = engine.stats.forward_steps
    assert len(await collect(engine, requests(8, 5), RAW, NO_STOP)) == 8
    assert engine.stats.forward_steps == steps + 5


async def test_leaving_after_the_first_sample_abandons_the_rest(open_engine):
    engine = open_engine(max_batch=8)
    wanted = [SampleRequest(PREFIX, (), n, n) for n in (2, 400, 400)]
    async with aclosing(engine.sample(wanted, RAW, NO_STOP)) as samples:
        assert (await anext(samples)).index == 0
    await until(engine, lambda stats: stats.rows_running == 0)
    assert engine.stats.rollouts_abandoned == 2
    assert engine.stats.rollouts_finished == 1


async def test_a_cancelled_caller_does_not_disturb_others(open_engine):
    engine, alone = open_engine(), open_engine()
    kept = asyncio.create_task(collect(engine, requests(8, 60), RAW, NO_STOP))
    left = asyncio.create_task(collect(engine, requests(8, 300, 50), RAW, NO_STOP))
    await until(engine, lambda stats: stats.rows_running == 16)
    left.cancel()
    assert await kept == await collect(alone, requests(8, 60), RAW, NO_STOP)


class BrokenError(RuntimeError):
    pass


async def test_a_failure_of_the_model_fails_running_calls_and_nothing_later(open_engine):
    engine = open_engine()
    good = await collect(engine, requests(4, 10))
    head = engine._worker._backend._head._layer
    armed = [True]

    def fail(*_: object) -> None:
        if armed[0]:
            raise BrokenError("out of memory, say")

    handle = head.register_forward_pre_hook(fail)
    for call in (collect(engine, requests(4, 10)), engine.score(ScoreRequest(PREFIX, (), (0,), 3))):
        with pytest.raises(EngineError, match="out of memory, say"):
            await call
    armed[0] = False
    assert engine.stats.rows_running == 0
    assert await collect(engine, requests(4, 10)) == good
    assert len(await engine.score(ScoreRequest(PREFIX, (), (0,), 3))) == 1
    handle.remove()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
async def test_nan_and_infinity_are_an_error_and_never_an_answer(bad, open_engine):
    engine = open_engine()
    head = engine._worker._backend._head._layer

    def spoil(_module: object, _args: object, logits: torch.Tensor) -> torch.Tensor:
        logits[..., 7] = bad
        return logits

    handle = head.register_forward_hook(spoil)
    with pytest.raises(EngineError, match="NaN or infinite"):
        await collect(engine, requests(2, 10))
    with pytest.raises(EngineError, match="NaN or infinite"):
        await engine.score(ScoreRequest(PREFIX, (), (0,), 3))
    handle.remove()
    assert len(await collect(engine, requests(2, 10))) == 2


async def test_closing_fails_running_calls_and_refuses_later_ones(open_engine):
    engine = open_engine()
    task = asyncio.create_task(collect(engine, requests(64, 400), RAW, NO_STOP))
    await until(engine, lambda stats: stats.forward_steps > 0)
    await engine.close()
    with pytest.raises(EngineError, match="closed"):
        await task
    with pytest.raises(EngineError, match="closed"):
        await engine.score(ScoreRequest(PREFIX, (), (0,), 3))
    with pytest.raises(EngineError, match="closed"):
        await collect(engine, requests(1), RAW, STOP)
    await engine.close()


async def test_models_that_are_opened_at_once_are_whole(checkpoint, plain):
    names = ("qwen2", "llama", "gemma2", "gemma3") * 3
    engines = await asyncio.gather(
        *(TransformersEngine.open(checkpoint(name), threads=1) for name in names)
    )
    for name, engine in zip(names, engines, strict=True):
        (score,) = await engine.score(ScoreRequest((5, 6, 7), (), (0,), top_k=1))
        expected = dense(plain(name), [5, 6, 7])[-1].log_softmax(-1).max()
        assert score.logprobs[0, 0] == pytest.approx(float(expected), abs=1e-4)
        await engine.close()


async def test_a_checkpoint_without_some_of_its_weights_is_refused(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint("llama"), tmp_path / "llama")
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EngineError, match=r"lack model\.norm\.weight"):
        TransformersEngine.load(folder)
