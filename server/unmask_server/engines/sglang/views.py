"""From raw log-probabilities of the likeliest ids to those under a sampling. Pure numpy.

A tempered probability is p^(1/T) / Z with Z = sum p^(1/T) over the whole vocabulary. Where only the
likeliest ids are known, log Z comes from the server (a tempered log-probability of any one id gives
it), or the unknown rest is shown to be too small to matter.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unmask_server.engines.base import ZERO_LOGPROB, Sampling

FloatArray = NDArray[np.float64]

NEGLIGIBLE_REST = 1e-7
"""A share of Z below this is less than float32 can tell."""


def log_z(logprobs: FloatArray, temperature: float, *, rest: int) -> float | None:
    """log Z at a temperature, from the likeliest ids alone; None where the others may matter.

    With x the least known probability and m the mass that is not known, the unknown ids add at
    most m x^(1/T - 1) for T <= 1 (each of them is at most x), and at most rest^(1 - 1/T) m^(1/T)
    for T > 1 (by concavity).

    Args:
        logprobs: raw, of the likeliest ids, likeliest first; shape (k,), k >= 1.
        temperature: > 0.
        rest: how many ids there are beside those.

    """
    known = _log_sum(logprobs / temperature)
    if rest == 0:
        return known
    # What float32 hides of the mass may be there.
    mass = max(-np.expm1(min(_log_sum(logprobs), 0.0)), 1e-7)
    inverse = 1.0 / temperature
    if temperature <= 1.0:
        bound = np.log(mass) + (inverse - 1.0) * logprobs[-1]
    else:
        bound = (1.0 - inverse) * np.log(rest) + inverse * np.log(mass)
    return known if bound - known < np.log(NEGLIGIBLE_REST) else None


def kept(logprobs: FloatArray, sampling: Sampling, *, complete: bool) -> int | None:
    """How many of the likeliest ids survive `top_k` and `top_p`; None where that is not known.

    Args:
        logprobs: at the sampling's temperature, likeliest first; shape (k,).
        sampling: with `top_k` or `top_p` set.
        complete: whether these are all ids there are.

    """
    k = len(logprobs)
    if sampling.top_k and sampling.top_k <= k:
        k = sampling.top_k
    elif sampling.top_k and not complete:
        return None
    if sampling.top_p >= 1.0:
        return k if sampling.top_k or complete else None
    p = np.exp(logprobs[:k])
    whole = 1.0 if sampling.joint or not sampling.top_k else float(p.sum())
    before = np.cumsum(p) - p
    survivors = int((before < sampling.top_p * whole).sum())
    bounded = bool(sampling.top_k) or complete or before[-1] + p[-1] >= sampling.top_p
    return max(1, survivors) if bounded else None


def cut(values: FloatArray, survives: NDArray[np.bool_], kept_mass: float) -> FloatArray:
    """Log-probabilities renormalised over the survivors; `ZERO_LOGPROB` for the others."""
    result = np.where(survives, values - np.log(kept_mass), ZERO_LOGPROB)
    return np.clip(result, ZERO_LOGPROB, 0.0)


def _log_sum(x: FloatArray) -> float:
    top = float(x.max())
    return top + float(np.log(np.exp(x - top).sum()))
