"""What the tests of engines have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from unmask_server.engines.base import Engine, Sample, SampleRequest, Sampling

from tests.engines.models import dense

STOP = frozenset({2})


def tokens(n: int, vocab_size: int, seed: int = 0) -> tuple[int, ...]:
    """Random ids without the special ones."""
    return tuple(np.random.default_rng(seed).integers(3, vocab_size, n).tolist())


async def collect(
    engine: Engine,
    requests: Sequence[SampleRequest],
    sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
    stop_ids: frozenset[int] = STOP,
) -> list[Sample]:
    """All samples, in the order of the requests."""
    found = {s.index: s async for s in engine.sample(requests, sampling, stop_ids)}
    assert sorted(found) == list(range(len(requests)))
    return [found[i] for i in range(len(requests))]


def naive_probs(logits: torch.Tensor, sampling: Sampling) -> np.ndarray[Any, np.dtype[Any]]:
    """What `Sampling` says, word by word, for one position: probabilities of all ids."""
    weights = np.exp(
        (logits.double().numpy() - logits.double().max().item()) / sampling.temperature
    )
    order = sorted(range(len(weights)), key=lambda i: (-logits[i].item(), i))
    whole = sum(weights)
    if sampling.top_k:
        order = order[: sampling.top_k]
    total = whole if sampling.joint else sum(weights[i] for i in order)
    mass, kept = 0.0, []
    for i in order:
        if mass >= sampling.top_p * total:
            break
        kept.append(i)
        mass += weights[i]
    probs = np.zeros(len(weights))
    probs[kept] = weights[kept] / mass
    return probs


def exact_outcomes(
    model: Any, prefix: tuple[int, ...], depth: int, sampling: Sampling
) -> dict[tuple[int, ...], float]:
    """Probability of every continuation of up to `depth` tokens that ends there or at a stop."""
    outcomes: dict[tuple[int, ...], float] = {}
    open_paths = {(): 1.0}
    for _ in range(depth):
        grown: dict[tuple[int, ...], float] = {}
        for path, p in open_paths.items():
            probs = naive_probs(dense(model, [*prefix, *path])[-1], sampling)
            for token in np.flatnonzero(probs).tolist():
                longer = (*path, token)
                target = outcomes if token in STOP else grown
                target[longer] = p * float(probs[token])
        open_paths = grown
    return outcomes | open_paths
