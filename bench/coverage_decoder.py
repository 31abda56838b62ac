"""The shipped decoder by hand, for many continuations of one prefix at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM


@dataclass
class Cache:
    """Keys and values of what all rows share (heads, length, width), and of each row's own."""

    shared: list[tuple[torch.Tensor, torch.Tensor]]
    own: list[tuple[torch.Tensor, torch.Tensor]]


class Student:
    """The shipped decoder by hand: its rows share the keys and values of their common prefix."""

    def __init__(self, directory: Path) -> None:
        model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        config = model.config
        self.heads, self.width, self.eps = (
            config.num_attention_heads,
            config.head_dim,
            config.rms_norm_eps,
        )
        if config.num_key_value_heads != self.heads:
            raise ValueError("grouped queries are not written here")
        self.layers = list(model.model.layers)
        self.embedding = model.model.embed_tokens.weight.detach()
        self.norm = model.model.norm.weight.detach()
        self.head = model.lm_head.weight.detach()
        base = config.rope_parameters["rope_theta"]
        self.frequencies = 1.0 / base ** (torch.arange(0, self.width, 2).float() / self.width)

    def prefix(self, ids: list[int]) -> tuple[torch.Tensor, Cache]:
        """Logits after `ids`, shape (V,), and the cache that rows continue from."""
        cache = Cache([], [])
        positions = torch.arange(len(ids))
        logits = self._forward(torch.tensor(ids), positions, cache, first=True)
        return logits[-1], cache

    def step(self, tokens: torch.Tensor, position: int, cache: Cache) -> torch.Tensor:
        """Logits after one more token a row, shape (rows, V)."""
        return self._forward(tokens, torch.full((1,), position), cache, first=False)

    def _forward(
        self, tokens: torch.Tensor, positions: torch.Tensor, cache: Cache, *, first: bool
    ) -> torch.Tensor:
        with torch.inference_mode():
            return self._layers(tokens, positions, cache, first)

    def _layers(
        self, tokens: torch.Tensor, positions: torch.Tensor, cache: Cache, first: bool
    ) -> torch.Tensor:
        angles = positions[:, None].float() * self.frequencies
        turn = torch.cat([angles, angles], -1)
        cos, sin = turn.cos(), turn.sin()
        x = self.embedding[tokens]
        for index, layer in enumerate(self.layers):
            a = self._normed(x, layer.input_layernorm.weight)
            attention = layer.self_attn
            q, k, v = (
                functional.linear(a, part.weight).view(len(tokens), self.heads, self.width)
                for part in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            q, k = _turned(q, cos, sin), _turned(k, cos, sin)
            if first:
                mixed = self._mix_prefix(q, k, v, cache)
            else:
                mixed = self._mix_rows(q, k, v, cache, index)
            x = x + functional.linear(mixed, attention.o_proj.weight)
            b = self._normed(x, layer.post_attention_layernorm.weight)
            mlp = layer.mlp
            gated = functional.silu(functional.linear(b, mlp.gate_proj.weight))
            up = functional.linear(b, mlp.up_proj.weight)
            x = x + functional.linear(gated * up, mlp.down_proj.weight)
        return functional.linear(self._normed(x, self.norm), self.head)

    def _mix_prefix(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cache: Cache
    ) -> torch.Tensor:
        q, k, v = (part.transpose(0, 1) for part in (q, k, v))
        cache.shared.append((k, v))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return mixed.transpose(0, 1).reshape(q.shape[1], -1)

    def _mix_rows(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cache: Cache, index: int
    ) -> torch.Tensor:
        # Own keys: (rows, heads, length, width).
        k, v = k[:, :, None], v[:, :, None]
        if index < len(cache.own):
            old = cache.own[index]
            k, v = torch.cat([old[0], k], 2), torch.cat([old[1], v], 2)
            cache.own[index] = (k, v)
        else:
            cache.own.append((k, v))
        shared_k, shared_v = cache.shared[index]
        queries = q.transpose(0, 1)
        far = (queries @ shared_k.transpose(1, 2)).transpose(0, 1)
        near = (k @ q[..., None])[..., 0]
        weights = torch.softmax(torch.cat([far, near], -1) / self.width**0.5, -1)
        far, near = weights.split([shared_k.shape[1], k.shape[2]], -1)
        mixed = (far.transpose(0, 1) @ shared_v).transpose(0, 1)
        mixed = mixed + (near[:, :, None] @ v)[:, :, 0]
        return mixed.reshape(len(q), -1)

    def _normed(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(x, (x.shape[-1],), weight, self.eps)


def _turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    rotated = torch.cat([-x[..., half:], x[..., :half]], -1)
    return x * cos[:, None] + rotated * sin[:, None]
