"""Draws of success at a node from the grid in `prior`: which of its priors, then each token's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unmask_server.diagnosis import prior
from unmask_server.diagnosis.counts import Counts

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Picked:
    """A prior for every draw, each field of shape (size, 1)."""

    tilt: IntArray
    """Which of the tilts, as an index."""
    slope: IntArray
    centre: IntArray
    strength: IntArray
    odd: FloatArray

    def places(self, height: IntArray, lean: IntArray, tilts: IntArray) -> IntArray:
        """Of each token's Beta prior in the tables over (M K), shape (size, tokens)."""
        moved = self.slope * height + tilts[self.tilt] * lean
        centre = (self.centre + moved).clip(0, len(prior.CENTRES) - 1)
        result: IntArray = centre * len(prior.STRENGTHS) + self.strength
        return result


def picks(weights: FloatArray, size: int, offset: float) -> IntArray:
    """Places in a grid, in its order, each as often as its weight says, up to one; shape (size,).

    Args:
        weights: of any shape, up to a factor.
        size: how many are picked.
        offset: in [0, 1), of the evenly spaced marks (systematic sampling).

    """
    edges = np.cumsum(weights)
    marks = (np.arange(size) + offset) / size * edges[-1]
    places: IntArray = np.searchsorted(edges, marks).clip(max=len(edges) - 1)
    return places


def picked_at(places: IntArray, shape: Sequence[int]) -> Picked:
    """The priors at places in a grid of shape (tilts, B, M, K, E)."""
    # In one dimension: of more than 8192 in two, numpy 2.4.6 gets some wrong.
    tilt, slope, centre, strength, odd = np.unravel_index(places, shape)
    return Picked(
        tilt[:, None],
        prior.SLOPES[slope][:, None],
        centre[:, None],
        strength[:, None],
        prior.ODD[odd][:, None],
    )


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of a node, and what their outcomes say about the grid."""

    counts: Counts
    height: IntArray
    """Shape (m + 1,), see `prior.heights`."""
    sampled: BoolArray
    """Shape (m + 1,): those that have rollouts. Exact outcomes say nothing: an end token is not one
    of the node's usual tokens."""
    outcomes: FloatArray
    """Shape (2, U): won and lost; many tokens have the same few rollouts."""
    outcome: IntArray
    """Shape (sampled,): which of them each had."""
    evidence: prior.Evidence

    @classmethod
    def of(cls, counts: Counts, p: FloatArray) -> Tokens:
        """Of a node with these outcomes and probabilities, shape (m + 1,)."""
        sampled = (counts.n > 0) & ~counts.exact
        rewards = np.minimum(counts.reward_sum, counts.n)[sampled]
        outcomes, outcome = np.unique(
            np.stack([rewards, counts.n[sampled] - rewards]), axis=1, return_inverse=True
        )
        evidence = prior.Evidence.of(outcomes[0], outcomes[1])
        return cls(counts, prior.heights(p), sampled, outcomes, outcome.reshape(-1), evidence)

    def log_likelihood(self, lean: IntArray, tilts: Sequence[int]) -> FloatArray:
        """Of the grid up to a constant, shape (tilts, B, M, K, E); `lean` is of all tokens."""
        mine = self.sampled
        return self.evidence.log_likelihood(self.outcome, self.height[mine], lean[mine], tilts)

    def draws(
        self,
        picked: Picked,
        lean: IntArray,
        tilts: IntArray,
        rngs: tuple[np.random.Generator, np.random.Generator],
    ) -> FloatArray:
        """Chances of success given a prior for each draw, shape (size, m + 1).

        Args:
            picked: the priors.
            lean: of every token, shape (m + 1,).
            tilts: what the priors' tilts are, in steps.
            rngs: for tokens with rollouts, and then for those without; they may be the same.

        """
        drawn = np.empty((len(picked.odd), len(lean)))
        places = picked.places(self.height, lean, tilts)
        drawn[:, self.sampled] = self._after(picked.odd, places[:, self.sampled], rngs[0])
        unseen = self.counts.n <= 0
        drawn[:, unseen] = _unseen(picked.odd, places[:, unseen], rngs[1])
        drawn[:, self.counts.exact] = exact_success(self.counts)
        return drawn

    def _after(self, odd: FloatArray, places: IntArray, rng: np.random.Generator) -> FloatArray:
        """Draws of tokens that have rollouts, shape (size, tokens)."""
        evidence, of = self.evidence, self.outcome
        won, lost = self.outcomes[0][of], self.outcomes[1][of]
        drawn: FloatArray = rng.beta(prior.WON[places] + won, prior.LOST[places] + lost)
        # In most draws no token is odd.
        some = np.flatnonzero(odd)
        share, outcome = odd[some], places[some] * len(evidence.odd) + of
        alike = (1.0 - share) * evidence.alike.reshape(-1)[outcome]
        unlike = share * evidence.odd[of]
        rows, tokens = np.nonzero(rng.random(unlike.shape) * (alike + unlike) < unlike)
        which = of[tokens]
        mark = rng.random(len(rows)) * evidence.odd[which] - evidence.odd_free[which]
        free = rng.beta(0.5 + won[tokens], 0.5 + lost[tokens])
        decided = np.where(mark < evidence.odd_fails[which], 0.0, 1.0)
        drawn[some[rows], tokens] = np.where(mark < 0.0, free, decided)
        return drawn


def _unseen(odd: FloatArray, places: IntArray, rng: np.random.Generator) -> FloatArray:
    """Draws of tokens without rollouts, shape (size, tokens)."""
    # Most of a large support has none; tables are several times faster than drawing.
    u = rng.random(places.shape)
    alike = (u - odd) / (1.0 - odd) * prior.QUANTILES
    drawn = prior.alike_quantiles()[places, alike.clip(0.0).astype(np.int64)]
    rows, tokens = np.nonzero(u < odd)
    unlike = u[rows, tokens] / odd[rows, 0] * prior.QUANTILES
    drawn[rows, tokens] = prior.odd_quantiles()[unlike.astype(np.int64)]
    return drawn


def exact_success(counts: Counts) -> FloatArray:
    """Success where it is known."""
    known = counts.exact
    result: FloatArray = np.minimum(counts.reward_sum[known] / counts.n[known], 1.0)
    return result
