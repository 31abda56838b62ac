"""Tiny models with random weights, and the plain computation to compare an engine with."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MambaConfig,
    PretrainedConfig,
    Qwen2Config,
)

SIZE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GEMMA: dict[str, Any] = SIZE | {"head_dim": 8, "num_key_value_heads": 2, "sliding_window": 12}
CONFIGS: dict[str, PretrainedConfig] = {
    "qwen2": Qwen2Config(vocab_size=60, num_key_value_heads=4, tie_word_embeddings=True, **SIZE),
    "llama": LlamaConfig(vocab_size=90, num_key_value_heads=2, **SIZE),
    "gemma2": Gemma2Config(vocab_size=70, final_logit_softcapping=3.0, **GEMMA),
    "gemma3": Gemma3TextConfig(vocab_size=80, **GEMMA),
    "mamba": MambaConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, state_size=4, eos_token_id=2
    ),
}


def save(name: str, folder: Path, *, sharpness: float = 6.0) -> Path:
    """A random model of a family, with distributions that are neither flat nor sure."""
    torch.manual_seed(int(hashlib.sha256(name.encode()).hexdigest()[:8], 16))
    config = CONFIGS[name.split("-")[0]]
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(sharpness if parameter.shape[0] != config.vocab_size else 8.0)
    model.generation_config.eos_token_id = 2
    model.save_pretrained(folder / name)
    return folder / name


def dense(model: Any, tokens: list[int]) -> torch.Tensor:
    """Logits after every token by the model itself, float64, shape (tokens, vocabulary)."""
    with torch.inference_mode():
        return model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].double()
