"""Chances of success at a node as posteriors, not points.

A token's success s_j has a posterior given its own rollouts; what its prior is decides how rare
tokens behave. Two are kept:

* `HierarchicalPosterior`, the default: tokens of one node learn from each other as far as the data
  say that they are alike. Its prior (`prior`) has four unknowns a node, which are integrated over:
  the centre of the tokens' success, how alike they are, whether likelier tokens succeed more
  often, and which share of the tokens is odd: fails always, succeeds always, or goes its own way.
* `JeffreysPosterior`: Beta(1/2, 1/2) for every token, whatever the others did.

Chosen by measured calibration (`python -m bench.coverage`): at 200 nodes in each setting (2, 8 and
50 candidates; 0 to 512 rollouts; drawn from P, forced equally, and adaptively), other nodes than
the choice was made on, nominal 90% intervals held the truth in so many percent:

| nodes | success | gradient | cosine | gain | advantage | value |
|---|---|---|---|---|---|---|
| the shipped student's | 92.7 | 88.0 | 91.1 | 88.7 | 84.6 | 90.5 |
| enumerable models' | 90.7 | 86.6 | 92.9 | 86.3 | 85.6 | 91.2 |
| random, tokens exchangeable | 94.2 | 92.2 | 91.4 | 90.9 | 91.5 | 91.1 |
| random, likelier tokens better | 91.5 | 84.3 | 93.3 | 87.5 | 87.1 | 88.9 |
| random, likelier tokens worse | 88.6 | 80.8 | 93.1 | 87.5 | 86.7 | 88.5 |
| random, some always fail or succeed | 89.6 | 84.0 | 93.9 | 84.6 | 84.8 | 92.4 |

The prior before this one, Beta(mu kappa, (1 - mu) kappa) for all tokens alike, held 72.9, 61.3,
89.1, 80.1, 75.3 and 87.2 of the student's. What stays outside of 87 to 93, and why:

* no rollout or very few: a token's interval is all of [0, 1] and holds everything;
* a teacher that knows of success: the posterior has no opinion of the teacher, and misses what the
  teacher is right about until rollouts tell (advantage of the student's nodes: 81 at 5 rollouts or
  fewer, 88 from 128 on; random nodes with such a teacher: cosine 74, and 84 at 512);
* two candidates: a cosine is 1 or -1, and an interval is sure of it or holds both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from unmask_server.diagnosis import prior
from unmask_server.diagnosis.counts import Counts

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

DRAWS = 1000
"""Posterior draws at a node: quantiles at 5% and 95% are then good to a twentieth of the width."""


class SuccessPosterior(Protocol):
    """A joint posterior of the chances of success after each token of a node."""

    def draws(self, counts: Counts, p: FloatArray, *, size: int = DRAWS, seed: int) -> FloatArray:
        """Chances of success, shape (size, m + 1), in [0, 1].

        Args:
            counts: outcomes over the support.
            p: the sampling policy's probabilities, shape (m + 1,).
            size: how many draws.
            seed: any non-negative integer; equal arguments give equal bytes.

        Exact outcomes have no spread; a token without rollouts has all that the prior leaves it.

        """
        ...


class JeffreysPosterior:
    """Independent Beta(1/2 + R, 1/2 + n - R)."""

    def draws(self, counts: Counts, p: FloatArray, *, size: int = DRAWS, seed: int) -> FloatArray:
        """See `SuccessPosterior`."""
        rng = np.random.default_rng(seed)
        known = counts.exact
        rewards = np.minimum(counts.reward_sum, counts.n)[~known]
        drawn = np.empty((size, len(counts.n)))
        shape = (size, len(rewards))
        drawn[:, ~known] = rng.beta(0.5 + rewards, 0.5 + counts.n[~known] - rewards, size=shape)
        drawn[:, known] = _exact(counts)
        return drawn


class HierarchicalPosterior:
    """Tokens that learn from each other, over the node's posterior of the grid in `prior`."""

    def draws(self, counts: Counts, p: FloatArray, *, size: int = DRAWS, seed: int) -> FloatArray:
        """See `SuccessPosterior`."""
        rng = np.random.default_rng(seed)
        drawn = np.empty((size, len(counts.n)))
        height = prior.heights(p)
        # Exact outcomes say nothing: an end token is not one of the node's usual tokens.
        sampled = (counts.n > 0) & ~counts.exact
        rewards = np.minimum(counts.reward_sum, counts.n)[sampled]
        # Many tokens have the same few rollouts.
        outcomes, of = np.unique(
            np.stack([rewards, counts.n[sampled] - rewards]), axis=1, return_inverse=True
        )
        of = of.reshape(-1)
        evidence = prior.Evidence.of(outcomes[0], outcomes[1])
        picked = _pick(evidence.log_likelihood(of, height[sampled]), size, rng)
        drawn[:, sampled] = _after(outcomes, of, evidence, picked, height[sampled], rng)
        unseen = counts.n <= 0
        drawn[:, unseen] = _unseen(picked, height[unseen], rng)
        drawn[:, counts.exact] = _exact(counts)
        return drawn


DEFAULT_POSTERIOR: SuccessPosterior = HierarchicalPosterior()


@dataclass(frozen=True, slots=True)
class _Picked:
    """A prior for every draw, each field of shape (size, 1)."""

    centre: IntArray
    strength: IntArray
    slope: IntArray
    odd: FloatArray

    def places(self, height: IntArray) -> IntArray:
        """Of each token's Beta prior in the tables over (M K), shape (size, tokens)."""
        centre = (self.centre + self.slope * height).clip(0, len(prior.CENTRES) - 1)
        result: IntArray = centre * len(prior.STRENGTHS) + self.strength
        return result


def _pick(log_likelihood: FloatArray, size: int, rng: np.random.Generator) -> _Picked:
    log_weights = prior.LOG_WEIGHTS + log_likelihood
    weights = np.exp(log_weights - log_weights.max()).reshape(-1)
    edges = np.cumsum(weights)
    # Systematic sampling: every prior comes as often as its weight says, up to one.
    marks = (np.arange(size) + rng.random()) / size * edges[-1]
    picked = rng.permutation(np.searchsorted(edges, marks).clip(max=len(weights) - 1))
    # In one dimension: of more than 8192 in two, numpy 2.4.6 gets some wrong.
    slope, centre, strength, odd = np.unravel_index(picked, log_weights.shape)
    return _Picked(
        centre[:, None], strength[:, None], prior.SLOPES[slope][:, None], prior.ODD[odd][:, None]
    )


def _after(
    outcomes: FloatArray,
    of: IntArray,
    evidence: prior.Evidence,
    picked: _Picked,
    height: IntArray,
    rng: np.random.Generator,
) -> FloatArray:
    """Draws of tokens that have rollouts, shape (size, tokens)."""
    places = picked.places(height)
    won, lost = outcomes[0][of], outcomes[1][of]
    drawn: FloatArray = rng.beta(prior.WON[places] + won, prior.LOST[places] + lost)
    # In most draws no token is odd.
    some = np.flatnonzero(picked.odd)
    share, outcome = picked.odd[some], places[some] * len(evidence.odd) + of
    alike = (1.0 - share) * evidence.alike.reshape(-1)[outcome]
    odd = share * evidence.odd[of]
    rows, tokens = np.nonzero(rng.random(odd.shape) * (alike + odd) < odd)
    which = of[tokens]
    mark = rng.random(len(rows)) * evidence.odd[which] - evidence.odd_free[which]
    free = rng.beta(0.5 + won[tokens], 0.5 + lost[tokens])
    decided = np.where(mark < evidence.odd_fails[which], 0.0, 1.0)
    drawn[some[rows], tokens] = np.where(mark < 0.0, free, decided)
    return drawn


def _unseen(picked: _Picked, height: IntArray, rng: np.random.Generator) -> FloatArray:
    """Draws of tokens without rollouts, shape (size, tokens)."""
    # Most of a large support has none; tables are several times faster than drawing.
    u = rng.random((len(picked.odd), len(height)))
    alike = (u - picked.odd) / (1.0 - picked.odd) * prior.QUANTILES
    drawn = prior.alike_quantiles()[picked.places(height), alike.clip(0.0).astype(np.int64)]
    rows, tokens = np.nonzero(u < picked.odd)
    odd = u[rows, tokens] / picked.odd[rows, 0] * prior.QUANTILES
    drawn[rows, tokens] = prior.odd_quantiles()[odd.astype(np.int64)]
    return drawn


def _exact(counts: Counts) -> FloatArray:
    """Success where it is known."""
    known = counts.exact
    result: FloatArray = np.minimum(counts.reward_sum[known] / counts.n[known], 1.0)
    return result
