"""What is thought of the tokens of a node before any rollout: a grid of priors and its tables.

Most tokens of a node are *alike*: s_j is Beta(mu_j kappa, (1 - mu_j) kappa), where logit mu_j is
the node's centre plus a slope times how likely the token is. The others, a share `odd` of them,
decide everything or do as they please: they always fail, always succeed, or are Beta(1/2, 1/2).
Centre, strength kappa, slope and share are the node's own, unknown, and on a grid here.

What a teacher may know adds one more, its *tilt* (see `tilt`): the centre then also rises or falls
with how far the token *leans*, which is how much the teacher prefers it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

STEP = 0.5
"""Between centres, in log-odds; a slope moves a token's centre by whole steps."""
_LOGITS = STEP * np.arange(-14, 15)
CENTRES = 1.0 / (1.0 + np.exp(-_LOGITS))
"""M of them."""
STRENGTHS = 4.0 ** np.arange(-0.5, 6.0)
"""K of them, 0.5 to 2048: from tokens that decide everything to all alike."""
SLOPES = np.array([-2, -1, 0, 1, 2])
"""B of them, in steps of log-odds for each nat of log P."""
ODD = np.array([0.0, 0.1, 0.3])
"""E of them: shares of tokens that are not like the others."""

_STRENGTH_WEIGHTS = np.array([1.6, 1.5, 1.1, 0.8, 0.6, 0.5, 0.4])
_SLOPE_WEIGHTS = np.array([0.1, 0.3, 3.0, 1.5, 0.4])
"""In a trained model what is likely succeeds more often, if there is a difference."""
_ODD_WEIGHTS = np.array([2.0, 1.0, 0.5])

FAILS, SUCCEEDS, FREE = 0.4, 0.2, 0.4
"""Of the odd tokens: those that always fail, that always succeed, that are Beta(1/2, 1/2)."""
FLOOR = 6.0
"""Tokens less likely than the likeliest by more than so many nats count as so much less likely."""

WON = np.outer(CENTRES, STRENGTHS).reshape(-1)
"""mu kappa, shape (M K,)."""
LOST = np.outer(1.0 - CENTRES, STRENGTHS).reshape(-1)
QUANTILES = 1024
"""A token without rollouts is drawn from so many quantiles of its prior."""


def _log_weights() -> FloatArray:
    """Log of the grid's prior weights up to a constant, shape (B, M, K, E).

    Centres as Beta(1/2, 1/2) has them.
    """
    centre = np.sqrt(CENTRES * (1.0 - CENTRES))
    weights = centre[:, None, None] * _STRENGTH_WEIGHTS[:, None] * _ODD_WEIGHTS
    result: FloatArray = np.log(_SLOPE_WEIGHTS[:, None, None, None] * weights)
    return result


LOG_WEIGHTS = _log_weights()


def heights(p: FloatArray) -> IntArray:
    """How likely tokens are, in whole nats around the node's mean over P; shape of `p`."""
    log_p = np.log(np.maximum(p, 1e-300))
    height = np.maximum(log_p - log_p.max(), -FLOOR)
    result: IntArray = np.rint(height - (height @ p) / p.sum()).astype(np.int64)
    return result


@dataclass(frozen=True, slots=True)
class Evidence:
    """What U different outcomes say about the grid."""

    alike: FloatArray
    """Shape (M K, U): chance of the outcome of a token that is like the others, scaled."""
    odd: FloatArray
    """Shape (U,): of one that is not, with the same scale."""
    odd_free: FloatArray
    """Shape (U,): the part of it from tokens that are Beta(1/2, 1/2)."""
    odd_fails: FloatArray
    """Shape (U,): and from those that always fail."""

    @classmethod
    def of(cls, won: FloatArray, lost: FloatArray) -> Evidence:
        """Of outcomes, each of shape (U,)."""
        both = _log_gamma(STRENGTHS[:, None] + (won + lost)) - _LOG_GAMMA_STRENGTHS[:, None]
        log_alike = _log_gamma(WON[:, None] + won) + _log_gamma(LOST[:, None] + lost)
        log_alike -= _LOG_GAMMAS[:, None] + np.tile(both, (len(CENTRES), 1))
        log_free = _log_gamma(0.5 + won) + _log_gamma(0.5 + lost)
        log_free -= _log_gamma(1.0 + won + lost) + np.log(np.pi)
        fails, succeeds = np.where(won <= _NONE, FAILS, 0.0), np.where(lost <= _NONE, SUCCEEDS, 0.0)
        decided = fails + succeeds
        scale = np.maximum(log_alike.max(axis=0), np.log(FREE) + log_free)
        # Only where nothing or everything succeeded, which is never that unlikely.
        scale = np.where(decided > 0.0, np.maximum(scale, np.log(decided + _NONE)), scale)
        shrink = np.where(decided > 0.0, np.exp(-scale.clip(-_MOST)), 0.0)
        free = FREE * np.exp(log_free - scale)
        return cls(np.exp(log_alike - scale), free + decided * shrink, free, fails * shrink)

    def log_likelihood(
        self, of: IntArray, height: IntArray, lean: IntArray, tilts: Sequence[int]
    ) -> FloatArray:
        """Log-likelihood of the grid up to a constant, shape (tilts, B, M, K, E).

        Args:
            of: which outcome each token had, shape (tokens,).
            height: of each token, likewise.
            lean: how far each token's centre moves for a tilt of 1, in steps, likewise.
            tilts: in steps of log-odds for one of `lean`.

        """
        m, k, e = len(CENTRES), len(STRENGTHS), len(ODD)
        kinds, place = np.unique(np.stack([height, lean]), axis=1, return_inverse=True)
        times = np.zeros((len(self.odd), kinds.shape[1]))
        np.add.at(times, (of, place.reshape(-1)), 1.0)
        mixed = self.alike[:, None] * (1.0 - ODD)[:, None] + ODD[:, None] * self.odd
        # Summed over the tokens of each kind, as though slope and tilt were 0.
        level = (np.log(np.maximum(mixed, 1e-300)) @ times).reshape(m, k * e, -1)
        moves = SLOPES[:, None] * kinds[0] + np.array(tilts)[:, None, None] * kinds[1]
        far = int(np.abs(moves).max(initial=0))
        # Beyond the grid's ends as at its ends.
        rows = np.arange(-far, m + far).clip(0, m - 1)
        levels = np.ascontiguousarray(np.moveaxis(level, -1, 0))[:, rows]
        total = np.zeros((len(tilts) * len(SLOPES), m, k * e))
        firsts = (moves + far).reshape(len(total), len(levels)).T.tolist()
        for first, of_kind in zip(firsts, levels, strict=True):
            for sums, at in zip(total, first, strict=True):
                sums += of_kind[at : at + m]
        return total.reshape(len(tilts), len(SLOPES), m, k, e)


_MOST = 700.0
_NONE = 1e-9
"""Rewards up to this are none: sums of fractional ones round."""


@lru_cache(maxsize=1)
def alike_quantiles() -> FloatArray:
    """Quantiles of Beta(mu kappa, (1 - mu) kappa), shape (M K, QUANTILES), from sorted draws."""
    oversampling = 8
    rng = np.random.default_rng(0)
    drawn = rng.beta(WON[:, None], LOST[:, None], size=(len(WON), oversampling * QUANTILES))
    drawn.sort(axis=1)
    return drawn[:, oversampling // 2 :: oversampling].copy()


@lru_cache(maxsize=1)
def odd_quantiles() -> FloatArray:
    """Quantiles of odd tokens, shape (QUANTILES,)."""
    u = (np.arange(QUANTILES) + 0.5) / QUANTILES
    # Those of Beta(1/2, 1/2) are sin^2.
    result: FloatArray = np.sin(0.5 * np.pi * ((u - FAILS) / FREE).clip(0.0, 1.0)) ** 2
    return result


def _log_gamma(x: FloatArray) -> FloatArray:
    """log Gamma(x), x > 0, to 1e-11: Stirling's series at x + 8, stepped back."""
    product = np.ones_like(x)
    for k in range(8):
        product = product * (x + k)
    z = x + 8.0
    series = 1 / (12 * z) - 1 / (360 * z**3) + 1 / (1260 * z**5) - 1 / (1680 * z**7)
    result: FloatArray = (z - 0.5) * np.log(z) - z + 0.5 * np.log(2 * np.pi) + series
    return result - np.log(product)


_LOG_GAMMAS = _log_gamma(WON) + _log_gamma(LOST)
_LOG_GAMMA_STRENGTHS = _log_gamma(STRENGTHS)
