"""A model from its directory, and which way of running it is right for it.

Whether the packed way is right is not guessed from the architecture's name: the model's own
logits are compared with ours on a probe, and a model that differs is recomputed instead.
"""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from unmask_server.engines.base import EngineError, ModelInfo
from unmask_server.engines.transformers.attention import UnsupportedAttentionError
from unmask_server.engines.transformers.backend import Backend
from unmask_server.engines.transformers.heads import Head
from unmask_server.engines.transformers.packed import PackedBackend
from unmask_server.engines.transformers.recompute import RecomputeBackend

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_UNBOUNDED_CONTEXT = 1 << 20
"""Stands for the context of a model whose config names none."""
_PROBE_TOKENS = 40
_PROBE_LONGEST = 600
"""A window of attention up to about this is probed past its edge."""
_TOLERANCE = {torch.float32: 1e-3}
_COARSE_TOLERANCE = 0.06
"""Of the largest logit, in 16 bits, where another order of additions is another result."""
_LENGTH_DEPENDENT_ROPE = frozenset({"dynamic", "longrope"})
_PLAIN_LAYERS = frozenset({"full_attention", "sliding_attention"})
# It writes into the logs.
disable_progress_bar()
_loading = threading.Lock()
"""transformers changes torch for the whole process while it loads: of two models loaded at once in
two threads, one may stay without weights ("Cannot copy out of meta tensor")."""


def read_model(path: str | Path, *, device: str, dtype: str) -> Any:
    """Load a checkpoint in Hugging Face format, in evaluation mode.

    Raises:
        EngineError: there is none, or it cannot be loaded; the reason is in the message.

    """
    if dtype not in DTYPES:
        raise EngineError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    try:
        with _loading:
            model, report = AutoModelForCausalLM.from_pretrained(
                str(path),
                dtype=DTYPES[dtype],
                local_files_only=True,
                # Code that comes with a model is not run; without this somebody would be asked.
                trust_remote_code=False,
                output_loading_info=True,
            )
        if missing := sorted(report["missing_keys"]):
            # transformers would go on with random numbers in their place.
            raise ValueError(f"its files lack {', '.join(missing[:5])}")
        return model.to(device).eval()
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        raise EngineError(f"the model at {path} cannot be loaded: {error}") from error


def describe(model: Any, vocab_size: int | None) -> ModelInfo:
    """Facts of a model, from its configuration.

    Args:
        model: loaded.
        vocab_size: how many columns of the logits have a token; None for all.

    Raises:
        EngineError: `vocab_size` is not in [1, columns].

    """
    columns = int(model.get_output_embeddings().weight.shape[0])
    if vocab_size is not None and not 1 <= vocab_size <= columns:
        raise EngineError(
            f"vocab_size={vocab_size} for a model of {columns} columns: "
            "the tokenizer does not belong to this model"
        )
    config = model.config.get_text_config()
    context = getattr(config, "max_position_embeddings", None) or _UNBOUNDED_CONTEXT
    generation = getattr(model, "generation_config", None)
    eos = getattr(generation, "eos_token_id", None)
    ids = [eos] if isinstance(eos, int) else list(eos or ())
    return ModelInfo(vocab_size or columns, int(context), frozenset(ids), kind="transformers")


def choose_backend(model: Any, info: ModelInfo, *, rows: int, budget: int | None) -> Backend:
    """The fastest way of running `model` that gives its own logits.

    Args:
        model: loaded; its attention implementation may be changed.
        info: its facts.
        rows: the most that run at once.
        budget: tokens whose keys and values may be held; None for what a quarter of the memory
            holds.

    """
    tokens = budget or _tokens_in_memory(model)
    fallback = RecomputeBackend(model, info.vocab_size, budget=tokens)
    reason = _not_plain(model)
    if reason is None:
        before = model.config._attn_implementation
        probe = _probe(info, model.config.get_text_config())
        head = Head(model, info.vocab_size)
        try:
            with torch.inference_mode():
                expected = fallback.hidden([probe], [0])[0][0]
                packed = PackedBackend(model, head, rows=max(rows, 8), budget=tokens)
                worst = _difference(packed, probe, expected)
            _require_every_layer(model, packed)
            limit = _TOLERANCE.get(model.dtype, _COARSE_TOLERANCE)
            if worst <= limit:
                packed.clear()
                return PackedBackend(model, head, rows=rows, budget=tokens)
            reason = f"its logits differ by {worst:.2g} of the largest"
        except (UnsupportedAttentionError, RuntimeError, ValueError, TypeError, KeyError,
                AttributeError, IndexError) as error:  # fmt: skip
            reason = f"{type(error).__name__}: {error}"
        model.set_attn_implementation(before)
    log.warning("the model is recomputed at every step, which is slow: %s", reason)
    return fallback


def _not_plain(model: Any) -> str | None:
    """Why a model's cache is known not to be plain, or None."""
    config = model.config.get_text_config()
    strange = set(getattr(config, "layer_types", None) or ()) - _PLAIN_LAYERS
    if strange:
        return f"layers of type {', '.join(sorted(strange))}"
    rope = getattr(config, "rope_parameters", None) or {}
    nested = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    for parameters in nested:
        if parameters.get("rope_type") in _LENGTH_DEPENDENT_ROPE:
            return f"positions of type {parameters['rope_type']}"
    return None


def _require_every_layer(model: Any, packed: PackedBackend) -> None:
    """Make sure that no layer attends in its own way, past our function.

    On random weights, or in 16 bits, the probe's logits alone might not tell.
    """
    layers = set(range(model.config.get_text_config().num_hidden_layers))
    if packed.layers() != layers:
        raise UnsupportedAttentionError(
            f"layers {sorted(layers - packed.layers())} attend in their own way"
        )


def _probe(info: ModelInfo, config: Any) -> np.ndarray[Any, np.dtype[np.int32]]:
    """Random tokens, more than a window of attention where that is not too many."""
    window = getattr(config, "sliding_window", None) or 0
    length = max(_PROBE_TOKENS, window + 8 if window < _PROBE_LONGEST else 0)
    rng = np.random.default_rng(0)
    return rng.integers(0, info.vocab_size, min(length, info.max_context), dtype=np.int32)


def _difference(
    packed: PackedBackend, probe: np.ndarray[Any, np.dtype[np.int32]], expected: torch.Tensor
) -> float:
    """The largest deviation over prefill, shared and own decoding, in the largest logit."""
    states, _ = packed.hidden([probe], [0])
    pairs = [(packed.head(states[0]), expected)]
    packed.clear()
    # Enough rows to attend to one chain together, one that parts early, one without context.
    starts = [len(probe) - 3] * 6 + [len(probe) // 2, 0]
    packed.add([probe[:start] for start in starts])
    for step in range(3):
        at = [start + step for start in starts]
        pairs.append((packed.step(probe[at].astype(np.int64)), expected[at]))
    scale = float(expected.abs().max()) or 1.0
    # A NaN differs from everything, the same NaN too, and is no reason to trust the other way.
    worst = max(float((a.float() - b.float()).abs().nan_to_num(0.0).max()) for a, b in pairs)
    return worst / scale


def _tokens_in_memory(model: Any) -> int:
    """How many tokens' keys and values fit in a quarter of the device's memory."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", 1)
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    item = torch.finfo(model.dtype).bits // 8
    each = 2 * config.num_hidden_layers * kv_heads * size * item
    if model.device.type == "cuda":
        memory = torch.cuda.get_device_properties(model.device).total_memory
    else:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, memory // 4 // each)
