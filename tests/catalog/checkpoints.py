"""Checkpoint directories in Hugging Face format with almost no weights, made without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from tests.tiny import word_level


def checkpoint(
    folder: Path,
    *,
    tokenizer: Tokenizer | None = None,
    vocab_size: int | None = None,
    context: int = 64,
    eos: Any = 0,
    chat: str | None = None,
    weight: float = 0.0,
    **config: Any,
) -> str:
    """Write a checkpoint; return its path.

    Args:
        folder: where to; made if missing.
        tokenizer: `word_level()` if none is given.
        vocab_size: columns of the logits; as many as there are tokens if None.
        context: prompt and generation, in tokens.
        eos: the generation config's; None for no generation config.
        chat: the chat template.
        weight: makes another model.
        config: more of config.json.

    """
    tokenizer = tokenizer or word_level()
    size = vocab_size or tokenizer.get_vocab_size()
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "architectures": ["Qwen2ForCausalLM"],
        "vocab_size": size,
        "max_position_embeddings": context,
        **config,
    }
    (folder / "config.json").write_text(json.dumps(settings))
    if eos is not None:
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    save_file(
        {"lm_head.weight": np.full((size, 2), weight, np.float32)}, folder / "model.safetensors"
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "<eos>", "chat_template": chat})
    )
    return str(folder)
