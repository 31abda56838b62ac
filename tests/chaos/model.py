"""A model that needs no weights: its files, and an engine that answers as it would.

What chaos is about is what becomes of answers, not how they are computed, and a server without
torch starts in a moment.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from unmask_server.engines.base import (
    ZERO_LOGPROB,
    FinishReason,
    ModelInfo,
    PositionScores,
    Sample,
    SampleRequest,
    Sampling,
    ScoreRequest,
)

from tests.tiny import CHAT, WORDS, word_level

EOS = 0
LIKELY = (EOS, EOS, 5, 6, 7, 8, 9, 10)
"""Each next token is one of these, equally often."""
AT_ONCE = 32
"""Rollouts that run at once."""
SECONDS = 0.02
"""What they take."""


def make_model(folder: Path) -> Path:
    """Write a checkpoint directory: a tokenizer, a configuration, and weights of no use."""
    folder.mkdir(parents=True)
    word_level().save(str(folder / "tokenizer.json"))
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": len(WORDS),
        "max_position_embeddings": 256,
        "eos_token_id": EOS,
    }
    special = {"eos_token": "<eos>", "chat_template": CHAT}
    special["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": EOS}))
    (folder / "tokenizer_config.json").write_text(json.dumps(special))
    save_file({"none": np.zeros(1, dtype=np.float32)}, folder / "model.safetensors")
    return folder


class ScriptedEngine:
    """Answers as that model would. A seed's rollout is always the same."""

    info = ModelInfo(vocab_size=len(WORDS), max_context=256, eos_ids=frozenset({EOS}))

    async def sample(
        self, requests: Sequence[SampleRequest], sampling: Sampling, stop_ids: frozenset[int]
    ) -> AsyncGenerator[Sample, None]:
        for index, request in enumerate(requests):
            if index % AT_ONCE == 0:
                await asyncio.sleep(SECONDS)
            rng = random.Random(request.seed)
            tokens: list[int] = []
            while len(tokens) < request.max_new_tokens and EOS not in tokens:
                tokens.append(rng.choice(LIKELY))
            stopped = EOS in tokens
            finish = FinishReason.STOP if stopped else FinishReason.LENGTH
            yield Sample(index, tuple(tokens), finish)

    async def score(self, request: ScoreRequest) -> list[PositionScores]:
        likely = sorted(set(LIKELY), key=LIKELY.count, reverse=True)
        order = [*likely, *(i for i in range(len(WORDS)) if i not in likely)]
        ids = np.array(order[: request.top_k], dtype=np.int32)
        p = [LIKELY.count(i) / len(LIKELY) for i in ids.tolist()]
        logprobs = np.array([np.log(x) if x else ZERO_LOGPROB for x in p], dtype=np.float32)
        views = np.repeat(logprobs[None], len(request.views), axis=0)
        return [PositionScores(ids, views) for _ in request.positions]

    async def close(self) -> None:
        pass
