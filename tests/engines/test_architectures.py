"""Which models run packed, and which are recomputed because packing would be wrong for them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM
from unmask_server.engines.transformers.loading import choose_backend, describe
from unmask_server.engines.transformers.packed import PackedBackend
from unmask_server.engines.transformers.recompute import RecomputeBackend

COMMON: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
PACKED: dict[str, dict[str, Any]] = {
    "MistralConfig": {"sliding_window": 12},
    "Qwen3Config": {"head_dim": 8},
    "Phi3Config": {},
    "CohereConfig": {"logit_scale": 0.3},
    "GraniteConfig": {"logits_scaling": 3.0},
    "GPTNeoXConfig": {},
    "OPTConfig": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "Qwen3MoeConfig": {"num_experts": 4, "moe_intermediate_size": 16, "num_experts_per_tok": 2},
}
RECOMPUTED: dict[str, tuple[dict[str, Any], str]] = {
    "GptOssConfig": ({"num_local_experts": 4, "head_dim": 8, "sliding_window": 12}, "s_aux"),
    "Llama4TextConfig": ({"head_dim": 8, "num_local_experts": 2}, "chunked_attention"),
    "BloomConfig": ({}, "attend in their own way"),
    "LlamaConfig": (
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
        "positions of type dynamic",
    ),
}


def build(name: str, extra: dict[str, Any], dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, name)(**{**COMMON, **extra})
    return AutoModelForCausalLM.from_config(config).to(dtype).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", PACKED)
def test_models_with_plain_caches_run_packed(name, dtype):
    model = build(name, PACKED[name], dtype)
    backend = choose_backend(model, describe(model, None), rows=4, budget=1000)
    assert isinstance(backend, PackedBackend)
    assert backend.cached() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", RECOMPUTED)
def test_others_are_recomputed_with_their_own_attention_and_the_log_says_why(name, dtype, caplog):
    extra, reason = RECOMPUTED[name]
    model = build(name, extra, dtype)
    before = model.config._attn_implementation
    backend = choose_backend(model, describe(model, None), rows=4, budget=1000)
    assert isinstance(backend, RecomputeBackend)
    assert reason in caplog.text
    assert model.config._attn_implementation == before
