"""What Unmask costs on top of SGLang, and what its prefix cache brings. Needs `make sglang-cpu`.

Real servers on a small random model. Each repetition alternates between Unmask and bare requests
with the same settings, with the prefix cache emptied before each, and the ratio is taken within it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import torch
from sqlalchemy import select
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast
from unmask.v1 import catalog_pb2, growth_pb2, trajectory_pb2
from unmask_server.app import App, build
from unmask_server.catalog.types import Model
from unmask_server.config import Settings
from unmask_server.database import schema
from unmask_server.database.connect import query
from unmask_server.database.migrate import migrate
from unmask_server.engines.base import RAW, SampleRequest, Sampling
from unmask_server.engines.sglang import SglangEngine, inspect
from unmask_server.engines.sglang.launch import Launch, ManagedSglang
from unmask_server.engines.sglang.order import reusable
from unmask_server.engines.sglang.payloads import (
    sampling_fields,
    sampling_params,
    scoring_fields,
)
from unmask_server.nodes.distributions import ScoreJob, Scorer
from unmask_server.tree import DistributionStore, TreeStore

from bench.figures import figure, show
from tests.collected import collected

ROOT = Path(__file__).parents[1]
PYTHON = Path(os.environ.get("SGLANG_VENV", ROOT / ".venv-sglang")) / "bin" / "python"
VOCABULARY, CONTEXT, EOS = 140, 2048, 0
NEW_TOKENS = 64


class Call:
    """The context of calls that are made without a socket."""

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return ()

    def auth_context(self) -> dict[str, list[bytes]]:
        return {}

    def peer(self) -> str:
        return "unix:"


CALL: Any = Call()


def save_model(folder: Path) -> Path:
    """A random Llama with a word for every id."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=128, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=4, intermediate_size=256, max_position_embeddings=CONTEXT,
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=EOS, pad_token_id=EOS,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    words = {"<eos>": 0, **{f"w{i}": i for i in range(1, VOCABULARY)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w1"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(folder)
    return folder


def launch(model: Path, *arguments: str) -> ManagedSglang:
    """A real server, with room for what is measured."""
    return ManagedSglang(
        Launch(
            model=str(model),
            command=(str(PYTHON), "-m", "sglang_cpu"),
            arguments=(
                "--max-total-tokens",
                "200000",
                "--log-level-http",
                "warning",
                "--log-level",
                "warning",
                *arguments,
            ),
        )
    )


class Bare:
    """Requests straight to a server."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self._url, self._session = url, session

    async def post(self, path: str, payload: Any) -> Any:
        async with self._session.post(self._url + path, json=payload) as response:
            response.raise_for_status()
            return await response.json() if path == "/generate" else None

    async def flush(self) -> None:
        """Empty the prefix cache."""
        await self.post("/flush_cache", {})

    async def generate(self, inputs: Sequence[Sequence[int]], params: list[Any]) -> float:
        """Tokens a second of one call with all inputs."""
        begun = time.perf_counter()
        fields = sampling_fields({}) | {"sampling_params": params}
        answers = await self.post("/generate", {"input_ids": [list(i) for i in inputs], **fields})
        seconds = time.perf_counter() - begun
        return float(sum(len(answer["output_ids"]) for answer in answers)) / seconds


@asynccontextmanager
async def unmask_server(folder: Path) -> AsyncIterator[App]:
    """All of a server but its socket."""
    url = f"sqlite:///{folder / 'bench.db'}"
    migrate(url)
    app = build(Settings(database=url))
    try:
        yield app
    finally:
        await app.close()


async def growth_tokens(model: Path, url: str, bare: Bare, n: int) -> dict[str, Any]:
    """Tokens a second of a growth, over the same prompts in one call straight to SGLang."""
    ours, theirs = [], []
    with tempfile.TemporaryDirectory() as folder:
        async with unmask_server(Path(folder)) as app:
            catalog = app.catalog_service
            policy = (
                await catalog.RegisterPolicy(
                    catalog_pb2.RegisterPolicyRequest(
                        model=str(model), endpoints=[url], max_new_tokens=NEW_TOKENS
                    ),
                    CALL,
                )
            ).policy
            for repetition in range(n + 1):
                words = " ".join(f"w{1 + (repetition * 7 + i) % 100}" for i in range(200))
                ids = await _growth(app, policy.id, words, repetition)
                begun = time.perf_counter()
                growth = await _grown(app, ids, repetition, bare)
                seconds = time.perf_counter() - begun
                prompts, limits = _sent(app, growth)
                await bare.flush()
                params = [sampling_params(Sampling(), limit, [EOS]) for limit in limits]
                straight = await bare.generate(prompts, params)
                if repetition:  # the first one warms up
                    ours.append(growth.tokens_sampled / seconds)
                    theirs.append(straight)
    return figure("growth_tokens", "tokens/s", ours, theirs, goal=0.95)


async def _growth(app: App, policy: str, words: str, repetition: int) -> list[str]:
    """A question with generations to grow."""
    fields = {"question": words, "answer": "1"}
    await app.catalog_service.RegisterQuestions(
        catalog_pb2.RegisterQuestionsRequest(
            questions=[catalog_pb2.QuestionSpec(name=f"q{repetition}", fields=fields)]
        ),
        CALL,
    )
    sampled = await collected(
        app.trajectory_service.SampleTrajectories(
            trajectory_pb2.SampleTrajectoriesRequest(
                policy=policy, questions=[f"q{repetition}"], count=4
            ),
            CALL,
        )
    )
    return [trajectory.id for trajectory in sampled.trajectories]


async def _grown(app: App, ids: list[str], repetition: int, bare: Bare) -> growth_pb2.Growth:
    await bare.flush()
    request = growth_pb2.StartGrowthRequest(
        request_id=f"bench-{repetition}",
        targets=[growth_pb2.GrowthTarget(trajectory=id_) for id_ in ids],
        budget=growth_pb2.Budget(rollouts=384),
    )
    started = await app.growth_service.StartGrowth(request, CALL)
    growth = started.growth
    watch = growth_pb2.WatchGrowthRequest(growth=growth.id)
    async for seen in app.growth_service.WatchGrowth(watch, CALL):
        growth = seen.growth
    return growth


def _sent(app: App, growth: growth_pb2.Growth) -> tuple[list[list[int]], list[int]]:
    """The prompts of a growth's rollouts, and how many tokens each sampled."""
    trees = query(app.database, lambda c: c.execute(select(schema.tree)).all())
    uids = query(
        app.database,
        lambda c: set(
            c.scalars(select(schema.rollout.c.uid).where(schema.rollout.c.growth_id == growth.id))
        ),
    )
    store = TreeStore(app.database)
    prompts, limits = [], []
    for tree in trees:
        question = app.catalog_service._catalog.get_question(tree.question_id)
        policy = app.catalog_service._catalog.get_policy(tree.policy_id)
        prompt = app.catalog_service._catalog.prompt_tokens(policy, question)
        for rollout in store.iter_rollouts(tree.id, 0, 1_000_000):
            if rollout.uid in uids and len(rollout.tokens) > rollout.forced_depth:
                prompts.append([*prompt, *rollout.tokens[: rollout.forced_depth]])
                limits.append(len(rollout.tokens) - rollout.forced_depth)
    return prompts, limits


def _requests(seed: int, prefix: int, nodes: int, each: int) -> list[SampleRequest]:
    """Rollouts from nodes along one long generation."""
    rng = np.random.default_rng(seed)
    prompt = tuple(rng.integers(1, VOCABULARY, prefix).tolist())
    path = tuple(rng.integers(1, VOCABULARY, nodes * 8).tolist())
    return [
        SampleRequest(prompt, (*path[: 8 * node], int(rng.integers(1, VOCABULARY))), 32, seed=i)
        for node in range(nodes)
        for i in range(each)
    ]


async def radix_reuse(engine: SglangEngine, bare: Bare, n: int) -> dict[str, Any]:
    """Input tokens from the prefix cache over those that could have been."""
    ratios = []
    for repetition in range(n):
        await bare.flush()
        requests = _requests(repetition, 300, 16, 8)
        before = engine.rollouts.stats.cached_tokens
        await _sample(engine, requests)
        could = reusable([(*r.prompt, *r.forced) for r in requests])
        ratios.append((engine.rollouts.stats.cached_tokens - before) / could)
    return figure("radix_reuse", "of reusable input tokens", ratios, [1.0] * n, goal=0.95)


async def radix_gain(with_: SglangEngine, without: SglangEngine, n: int) -> dict[str, Any]:
    """Rollouts a second on a long generation, with the prefix cache over without."""
    fast, slow = [], []
    for repetition in range(n + 1):
        requests = _requests(100 + repetition, 800, 8, 8)
        seconds = [await _sample(engine, requests) for engine in (with_, without)]
        if repetition:
            fast.append(len(requests) / seconds[0])
            slow.append(len(requests) / seconds[1])
    return figure("radix_gain", "rollouts/s", fast, slow, goal=None)


async def _sample(engine: SglangEngine, requests: Sequence[SampleRequest]) -> float:
    begun = time.perf_counter()
    done = [sample async for sample in engine.sample(requests, Sampling(), frozenset({EOS}))]
    if len(done) != len(requests):
        raise RuntimeError(f"{len(done)} of {len(requests)} rollouts came back")
    return time.perf_counter() - begun


async def teacher_scoring(model: Path, url: str, bare: Bare, n: int) -> dict[str, Any]:
    """Seconds for a 500-token generation under 4 teachers, over 4 bare scoring calls."""
    ours, theirs = [], []
    rng = np.random.default_rng(7)
    with tempfile.TemporaryDirectory() as folder:
        async with unmask_server(Path(folder)) as app:
            registered = (
                await app.catalog_service.RegisterPolicy(
                    catalog_pb2.RegisterPolicyRequest(model=str(model), endpoints=[url]),
                    CALL,
                )
            ).policy
            found: Model = app.catalog_service._catalog.get_policy(registered.id).model
            scorer = Scorer(DistributionStore(app.database), app.engines)
            for repetition in range(n + 1):
                path = tuple(rng.integers(1, VOCABULARY, 500).tolist())
                prompts = [tuple(rng.integers(1, VOCABULARY, 60).tolist()) for _ in range(4)]
                jobs = [
                    ScoreJob(found, VOCABULARY, prompt, path, tuple(range(500)), (RAW,), 64)
                    for prompt in prompts
                ]
                await bare.flush()
                begun = time.perf_counter()
                await asyncio.gather(*map(scorer.score, jobs))
                middle = time.perf_counter()
                await bare.flush()
                fields = scoring_fields(len(prompts[0]) - 1, VOCABULARY)
                flushed = time.perf_counter()
                await asyncio.gather(
                    *(
                        bare.post("/generate", {"input_ids": [[*prompt, *path]], **fields})
                        for prompt in prompts
                    )
                )
                end = time.perf_counter()
                if repetition:
                    ours.append(middle - begun)
                    theirs.append(end - flushed)
    return figure("teacher_scoring", "s", ours, theirs, goal=1.1, direction="down")


async def measure(repetitions: int) -> AsyncIterator[dict[str, Any]]:
    """All figures."""
    with tempfile.TemporaryDirectory() as folder:
        model = save_model(Path(folder))
        async with (
            launch(model) as server,
            launch(model, "--disable-radix-cache") as uncached,
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=600)) as session,
        ):
            await asyncio.gather(server.ready(), uncached.ready())
            bare = Bare(server.url, session)
            yield await growth_tokens(model, server.url, bare, repetitions)
            serving = await inspect([server.url], columns=VOCABULARY, usable=VOCABULARY)
            shape: dict[str, Any] = {
                "columns": VOCABULARY, "usable": VOCABULARY, "max_context": CONTEXT,
            }  # fmt: skip
            with_ = SglangEngine([server.url], serving, **shape)
            without = SglangEngine([uncached.url], serving, **shape)
            yield await radix_reuse(with_, bare, repetitions)
            yield await radix_gain(with_, without, repetitions)
            await with_.close()
            await without.close()
            yield await teacher_scoring(model, server.url, bare, repetitions)


async def main() -> None:
    """Print one JSON line a figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=5)
    options, _ = parser.parse_known_args()
    if not PYTHON.exists():
        print(json.dumps({"name": "sglang_engine", "skipped": "no SGLang: make sglang-cpu"}))
        return
    async for found in measure(options.repetitions):
        show(found)


if __name__ == "__main__":
    asyncio.run(main())
