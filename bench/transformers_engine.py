"""Forced rollouts a second of the transformers engine against plain `generate`.

`generate` gets what it is best at: one left-padded batch of all requests, on the same threads, in
the same process, with the same stop token. Both sample at temperature 1 from the same random
model, and the same row ends at the same limit of 20 to 60 tokens on both sides (or earlier, where
it happens to sample the stop token).

Repetitions alternate between the two and the ratio is taken within each, so that a busy machine
disturbs both alike.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, Qwen2Config
from unmask_server.engines.base import SampleRequest, Sampling
from unmask_server.engines.transformers import TransformersEngine

from bench.figures import figure, show

STOP, PAD = 2, 0
Prompts = list[list[int]]

TINY = Qwen2Config(
    vocab_size=140, hidden_size=128, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=4, intermediate_size=256, max_position_embeddings=1024,
    tie_word_embeddings=True, bos_token_id=None, eos_token_id=STOP, pad_token_id=PAD,
)  # fmt: skip
SMOLLM2 = LlamaConfig(
    vocab_size=49152, hidden_size=576, num_hidden_layers=30, num_attention_heads=9,
    num_key_value_heads=3, intermediate_size=1536, max_position_embeddings=2048,
    tie_word_embeddings=True, bos_token_id=None, eos_token_id=STOP, pad_token_id=PAD,
)  # fmt: skip


def save_model(config: Any, folder: Path) -> Path:
    """A random model in Hugging Face format."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def distinct(n: int, vocab: int, rng: np.random.Generator) -> Prompts:
    """Prompts with nothing in common, 60 to 160 tokens."""
    return [rng.integers(3, vocab, rng.integers(60, 161)).tolist() for _ in range(n)]


def shared(n: int, vocab: int, rng: np.random.Generator) -> Prompts:
    """Prompts of which each 16 share 200 to 400 tokens, and end in up to 8 of their own."""
    prompts: Prompts = []
    while len(prompts) < n:
        prefix = rng.integers(3, vocab, rng.integers(200, 401)).tolist()
        for _ in range(min(16, n - len(prompts))):
            prompts.append(prefix + rng.integers(3, vocab, rng.integers(1, 9)).tolist())
    return prompts


def generate(model: Any, prompts: Prompts, limits: np.ndarray[Any, Any]) -> int:
    """Plain `generate`, one left-padded batch. Rows past their limit are told to stop."""
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), PAD)
    mask = torch.zeros_like(ids)
    for i, prompt in enumerate(prompts):
        ids[i, width - len(prompt) :] = torch.tensor(prompt)
        mask[i, width - len(prompt) :] = 1
    ends = torch.from_numpy(limits)

    def done(tokens: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        return tokens.shape[1] - width >= ends

    config = GenerationConfig(
        max_new_tokens=int(limits.max()), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
        eos_token_id=STOP, pad_token_id=PAD,
    )  # fmt: skip
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids, attention_mask=mask, generation_config=config, stopping_criteria=[done]
        )
    return int(out.shape[0])


async def rollouts(engine: TransformersEngine, prompts: Prompts, limits: Any, seed: int) -> int:
    """The same by the engine."""
    requests = [
        SampleRequest(tuple(prompt), (), int(limit), seed=seed * 10_000 + i)
        for i, (prompt, limit) in enumerate(zip(prompts, limits, strict=True))
    ]
    done = [s async for s in engine.sample(requests, Sampling(), frozenset({STOP}))]
    return len(done)


async def compare(
    name: str, path: Path, make: Callable[..., Prompts], *, rows: int, repetitions: int,
    threads: int, goal: float,
) -> dict[str, Any]:  # fmt: skip
    """One figure: rollouts a second, against `generate` in the same repetition.

    Every repetition has new prompts, so nothing is left over from the one before.
    """
    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    engine = TransformersEngine.load(path, max_batch=rows, threads=threads)
    rng = np.random.default_rng(0)
    ours, theirs = [], []
    for repetition in range(repetitions + 1):
        prompts = make(rows, engine.info.vocab_size, rng)
        limits = rng.integers(20, 61, rows)
        start = time.perf_counter()
        generate(model, prompts, limits)
        middle = time.perf_counter()
        await rollouts(engine, prompts, limits, repetition)
        end = time.perf_counter()
        if repetition:  # the first one warms up
            theirs.append(rows / (middle - start))
            ours.append(rows / (end - middle))
    await engine.close()
    return figure(name, "rollouts/s", ours, theirs, goal=goal)


def main() -> None:
    """Print one JSON line a figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--large", action="store_true", help="the shape of SmolLM2-135M too")
    options, _ = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        tiny = save_model(TINY, Path(folder, "tiny"))
        cases: list[tuple[str, Path, Callable[..., Prompts], int, int, float]] = [
            ("rollouts_distinct_prefixes_over_generate", tiny, distinct, 64, 7, 1.5),
            ("rollouts_shared_prefixes_over_generate", tiny, shared, 64, 7, 3.0),
        ]
        if options.large:
            large = save_model(SMOLLM2, Path(folder, "large"))
            cases += [
                ("rollouts_large_distinct_over_generate", large, distinct, 8, 2, 1.0),
                ("rollouts_large_shared_over_generate", large, shared, 16, 2, 1.0),
            ]
        for name, path, make, rows, repetitions, goal in cases:
            taken = compare(
                name, path, make, rows=rows, repetitions=min(repetitions, options.repetitions),
                threads=options.threads, goal=goal,
            )  # fmt: skip
            show(asyncio.run(taken))


if __name__ == "__main__":
    main()
