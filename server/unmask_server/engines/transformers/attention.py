"""The attention function that the engine puts into a model, and what it attends to.

transformers lets a model's attention be replaced by name. Ours ignores the mask and asks the
*plan* that the worker thread has set: the packed tokens of a pass, shape (1, tokens), belong to
many sequences, and only the plan knows which keys each of them sees.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from transformers import AttentionInterface

from unmask_server.engines.transformers.chains import Chain

NAME = "unmask"
NEVER = -1.0e30
"""Added to a score that must not count. Finite, so a part of the keys may be masked as a whole."""


class UnsupportedAttentionError(Exception):
    """The model asks of attention what ours does not do; it must be run in another way."""


@dataclass(frozen=True, slots=True)
class Form:
    """How a layer attends."""

    scaling: float
    window: int | None
    """Only keys less than this many positions back; None for all."""
    softcap: float | None
    """Scores are squeezed to ±softcap by a tanh."""

    def squeeze(self, scores: torch.Tensor) -> torch.Tensor:
        """Apply `softcap`."""
        return scores if self.softcap is None else (scores / self.softcap).tanh() * self.softcap


class Plan(Protocol):
    """What the tokens of one forward pass attend to."""

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, form: Form
    ) -> torch.Tensor:
        """Keep key and value, and attend.

        Args:
            layer: its index.
            query: shape (heads, tokens, head size).
            key: shape (kv heads, tokens, head size).
            value: as key; its head size may differ.
            form: how.

        Returns: shape (tokens, heads, head size of value).

        """
        ...


_current = threading.local()


@contextmanager
def attending(plan: Plan) -> Iterator[None]:
    """Make `plan` the one that this thread's forward passes follow."""
    _current.plan = plan
    try:
        yield
    finally:
        _current.plan = None


_HARMLESS = frozenset(
    {"dropout", "is_causal", "position_ids", "use_cache", "output_attentions"}
    | {"output_router_logits"}
)


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """As transformers calls it: query (1, heads, tokens, head size), key and value likewise."""
    plan: Plan | None = getattr(_current, "plan", None)
    unknown = sorted(k for k, v in kwargs.items() if v is not None and k not in _HARMLESS)
    if plan is None or attention_mask is not None or unknown:
        raise UnsupportedAttentionError(f"attention with a mask or with {unknown}")
    form = Form(query.shape[-1] ** -0.5 if scaling is None else scaling, sliding_window, softcap)
    out = plan.attend(module.layer_idx, query[0], key[0], value[0], form)
    return out[None], None


AttentionInterface.register(NAME, _attention)


@dataclass(slots=True)
class Segment:
    """Tokens ``start`` to ``end`` of a chain, computed in one pass."""

    chain: Chain
    start: int
    end: int
    masks: dict[int | None, torch.Tensor] = field(default_factory=dict)

    def mask(self, window: int | None, device: torch.device) -> torch.Tensor:
        """Which keys each token sees: shape (end - start, end), bool."""
        if window not in self.masks:
            query = torch.arange(self.start, self.end, device=device)[:, None]
            key = torch.arange(self.end, device=device)[None]
            seen = key <= query
            if window is not None:
                seen &= key > query - window
            self.masks[window] = seen
        return self.masks[window]


class PrefillPlan:
    """Every segment attends to its own chain, up to each token itself."""

    def __init__(self, segments: list[Segment]) -> None:
        self._segments = segments

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, form: Form
    ) -> torch.Tensor:
        """See `Plan`."""
        parts, at = [], 0
        grouped = query.shape[0] != key.shape[0]
        for s in self._segments:
            here = slice(at, at + s.end - s.start)
            at = here.stop
            s.chain.write(layer, s.start, key[:, here], value[:, here])
            k, v = (tensor[None] for tensor in s.chain.read(layer, 0, s.end))
            q = query[None, :, here]
            whole = s.start == 0 and (form.window is None or s.end <= form.window)
            if form.softcap is not None:
                out = _softcapped(q, k, v, s.mask(form.window, q.device), form)
            else:
                out = torch.nn.functional.scaled_dot_product_attention(
                    q, k, v,
                    attn_mask=None if whole else s.mask(form.window, q.device),
                    is_causal=whole, scale=form.scaling, enable_gqa=grouped,
                )  # fmt: skip
            parts.append(out[0].transpose(0, 1))
        return torch.cat(parts)


def _softcapped(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor, form: Form
) -> torch.Tensor:
    """Attention spelled out, shape (1, heads, tokens, size): no fused kernel squeezes scores."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = form.squeeze((q @ k.transpose(2, 3)).float() * form.scaling)
    return scores.masked_fill(~mask, NEVER).softmax(-1).to(v.dtype) @ v
