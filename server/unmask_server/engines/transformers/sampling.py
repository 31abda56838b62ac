"""From logits to probabilities to tokens: the very distribution that `Sampling` describes.

Scoring and sampling use the same `cut_mask`, so a token that scoring gives probability zero is
never drawn. Everything is in float64, which costs little beside a forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from unmask_server.engines.base import ZERO_LOGPROB, Sampling

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_PARTIAL_SORT = 4096
"""Vocabularies up to this size are simply sorted."""
_NUCLEUS_GUESS = 512
"""How many of the likeliest ids of a large vocabulary are first searched for the nucleus."""


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom generators)."""
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))


def uniforms(seeds: NDArray[np.int64], steps: NDArray[np.int64]) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1), a pure function of (seed, step).

    Counter-based: the `step`-th output of splitmix64 whose state starts at the mixed seed, so a
    row needs no generator of its own and its draws do not depend on the rest of the batch.

    Args:
        seeds: shape (n,).
        steps: shape (n,), >= 0.

    Returns: shape (n,), multiples of 2**-53.

    """
    with np.errstate(over="ignore"):
        start = _mix(seeds.astype(np.uint64) + _GOLDEN)
        bits = _mix(start + (steps.astype(np.uint64) + np.uint64(1)) * _GOLDEN)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def likeliest(logits: torch.Tensor, k: int) -> torch.Tensor:
    """The ids of the `k` largest logits, largest first; of equal ones the lower id comes first.

    Args:
        logits: shape (n, vocabulary).
        k: >= 0; all ids where it is the vocabulary's size or more.

    Returns: int64, shape (n, min(k, vocabulary)).

    """
    n, size = logits.shape
    k = min(k, size)
    if k == 0:
        return torch.empty((n, 0), dtype=torch.int64, device=logits.device)
    if size <= _PARTIAL_SORT or 4 * k > size:
        return torch.sort(logits, dim=-1, descending=True, stable=True).indices[:, :k]
    # `topk` breaks ties as it likes; only the value of the last one is taken from it.
    last = logits.topk(k, dim=-1).values[:, -1:]
    above, equal = logits > last, logits == last
    room = k - above.sum(-1, keepdim=True)
    ids = (above | (equal & (equal.cumsum(-1) <= room))).nonzero()[:, 1].view(n, k)
    order = torch.sort(logits.gather(-1, ids), dim=-1, descending=True, stable=True).indices
    return ids.gather(-1, order)


def _nucleus(exponents: torch.Tensor, k: int, top_p: float, joint: bool) -> torch.Tensor:
    """How `cut_mask` does it once it has a temperature: exponents (n, vocabulary), 1 <= k."""
    size = exponents.shape[-1]
    # Where the nucleus is small, which is usual, a large vocabulary need not be sorted.
    guess = min(k, _NUCLEUS_GUESS) if top_p < 1 and size > _PARTIAL_SORT else k
    ids = likeliest(exponents, guess)
    weights = exponents.gather(-1, ids).exp()
    if top_p < 1:
        if k >= size or joint:
            total = exponents.exp().sum(-1)
        elif k == guess:
            total = weights.sum(-1)
        else:
            total = exponents.gather(-1, likeliest(exponents, k)).exp().sum(-1)
        wanted = top_p * total[:, None]
        before = weights.cumsum(-1) - weights
        if guess < k and bool((before[:, -1:] + weights[:, -1:] < wanted).any()):
            ids = likeliest(exponents, k)
            weights = exponents.gather(-1, ids).exp()
            before = weights.cumsum(-1) - weights
        kept = before < wanted
        kept[:, 0] = True
    else:
        kept = torch.ones_like(ids, dtype=torch.bool)
    mask = torch.zeros(exponents.shape, dtype=torch.bool, device=exponents.device)
    return mask.scatter_(-1, ids, kept)


def log_probs(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Log-probabilities of all ids under `sampling`.

    Temperature first, then the `top_k` likeliest, then the smallest set of the likeliest whose
    renormalised (if `joint`: whole) mass reaches `top_p`, then renormalised. Of equally likely ids
    at an edge the lower ones stay.

    Args:
        logits: shape (n, vocabulary), finite.
        sampling: temperature > 0, top_p in (0, 1], top_k >= 0.

    Returns: float64, shape (n, vocabulary), in [`ZERO_LOGPROB`, 0].

    """
    z = logits.double()
    # Subtracting the largest first keeps the tiniest temperature from overflowing.
    z = (z - z.amax(-1, keepdim=True)) / sampling.temperature
    size = z.shape[-1]
    k = sampling.top_k if 0 < sampling.top_k < size else size
    if k < size or sampling.top_p < 1:
        z = z.masked_fill(~_nucleus(z, k, sampling.top_p, sampling.joint), float("-inf"))
    return (z - z.logsumexp(-1, keepdim=True)).clamp_(min=ZERO_LOGPROB)


def draw(
    logits: torch.Tensor,
    samplings: Sequence[tuple[Sampling, NDArray[np.int64] | None]],
    uniform: NDArray[np.float64],
) -> NDArray[np.int64]:
    """One token a row, by inverting the cumulative distribution at `uniform`.

    Args:
        logits: shape (n, vocabulary), finite.
        samplings: which rows (None for all) are drawn under which sampling; every row once.
        uniform: shape (n,), in [0, 1).

    Returns: shape (n,).

    """
    if len(samplings) == 1:
        weights = log_probs(logits, samplings[0][0]).exp_()
    else:
        weights = torch.empty(logits.shape, dtype=torch.float64, device=logits.device)
        for sampling, rows in samplings:
            index = torch.from_numpy(rows).to(logits.device)
            weights[index] = log_probs(logits[index], sampling).exp_()
    cumulative = weights.cumsum_(-1)
    total = cumulative[:, -1:]
    target = torch.from_numpy(uniform).to(logits.device)[:, None] * total
    # The product may round up to the total, past the last id with a probability.
    target = torch.minimum(target, torch.nextafter(total, torch.zeros_like(total)))
    ids: NDArray[np.int64] = torch.searchsorted(cumulative, target, right=True)[:, 0].cpu().numpy()
    return ids
