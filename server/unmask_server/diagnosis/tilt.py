"""What a teacher may know of success: nothing, or that what it prefers does better, or worse.

Without an opinion of the teacher the tokens that it lifts are thought to be as good as others of
their kind until rollouts tell; of a teacher that knows of success, intervals of cosine, gain and
advantage then miss the truth. So a node's prior has one more unknown for each teacher, its *tilt*.
With a probability of 1 - `SHARE` it is zero, and everything is as in `prior`; otherwise the
log-odds of a token's centre move by the tilt times the teacher's log-ratio log T - log P,
standardised at the node. Tilts of either sign have the same weight: nothing is promised before
rollouts say so.

The posterior is exact on the grid: a mixture of the node's own draws and of draws with a tilt. As
many of the former are replaced as the data say; the others, and all answers that are not about a
teacher, stay as they are.

Several teachers at a node: each is seen by its own opinion alone, so that an answer about it does
not depend on which others were asked for. They share what is drawn: which of the node's draws are
replaced, and all random numbers. Among the replaced, tilts go from the lowest to the highest to the
draws from where success fell most with the teacher's preference to where it rose most. So teachers
that think nearly alike are nearly alike in every draw, opposite ones have opposite tilts, and in
comparisons their shared noise cancels as before. What is unshrunk, `NodePosterior.around_estimate`,
has no prior to speak of, and no tilt.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unmask_server.diagnosis import prior
from unmask_server.diagnosis.grid import Tokens, picked_at, picks

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

TILTS = np.array([-3, -1, 1, 3])
"""In steps of log-odds (`prior.STEP`) for each half standard deviation of the log-ratio."""
SHARE = 0.1
"""Of the prior's weight, on tilts; equally on each."""
HALVES = 2.0
"""A token's lean is counted in half standard deviations."""
_SHARES = np.append(1.0 - SHARE, np.full(len(TILTS), SHARE / len(TILTS)))
_LOG_WEIGHTS = prior.LOG_WEIGHTS + np.log(_SHARES)[:, None, None, None, None]
"""Log of the prior's weights, shape (1 + tilts, B, M, K, E)."""
_MOST_LEAN = 5
_MOST_NATS = 6.0
"""Log-ratios beyond this count as so large: of a token that one of the two all but never takes."""
_LEAST_NATS = 1e-3
"""A teacher whose log-ratios vary less than this prefers nothing."""


@dataclass(frozen=True, slots=True)
class Opinion:
    """What a teacher thinks of the tokens of a node; arrays have shape (m + 1,), tail last."""

    lean: IntArray
    """How far it prefers each token to the student's choice, in half standard deviations."""
    weight: FloatArray
    """(P + T) / 2, under which log T - log P has the mean and the deviation behind `lean`."""

    @classmethod
    def of(cls, p: FloatArray, t: FloatArray) -> Opinion | None:
        """A teacher's, or None if it agrees with the student.

        Args:
            p: the student's probabilities at the loss's temperature, shape (m + 1,), tail last.
            t: the teacher's, likewise.

        """
        weight = (p + t) / (p.sum() + t.sum())
        live, least = weight > 0.0, np.exp(-_MOST_NATS)
        ratio = np.zeros(len(p))
        ratio[live] = np.log(np.maximum(t, least * p)[live] / np.maximum(p, least * t)[live])
        ratio[live] -= weight @ ratio
        deviation = float(np.sqrt(weight @ ratio**2))
        if deviation < _LEAST_NATS:
            return None
        lean = np.rint(HALVES * ratio / deviation).clip(-_MOST_LEAN, _MOST_LEAN)
        return cls(lean.astype(np.int64), weight)


@dataclass(frozen=True, slots=True)
class Tilts:
    """What is thought of teachers at a node."""

    tokens: Tokens

    def weights(self, lean: IntArray) -> FloatArray:
        """The grid's posterior weights up to a factor, shape (1 + tilts, B, M, K, E).

        The first is without a tilt; `lean` has shape (m + 1,).
        """
        weights = self.tokens.log_likelihood(lean, (0, *TILTS.tolist()))
        weights += _LOG_WEIGHTS
        weights -= weights.max()
        return np.exp(weights, out=weights)

    def draws(
        self, drawn: FloatArray, opinion: Opinion, *, seed: int
    ) -> tuple[IntArray, FloatArray]:
        """Which of a node's draws are others for who knows the teacher, and what they are.

        Args:
            drawn: the node's own, shape (size, m + 1).
            opinion: the teacher's.
            seed: any non-negative integer; the same for all teachers at the node.

        Returns:
            Rows of `drawn`, and chances of success instead of theirs, shape (rows, m + 1).

        """
        lean = opinion.lean
        # 3 and 4 set these streams apart from the node's others.
        rng, unseen = (np.random.default_rng((seed, stream)) for stream in (3, 4))
        order, round_up, offset = rng.permutation(len(drawn)), rng.random(), rng.random()
        weights = self.weights(lean)
        tilted = float(weights[1:].sum() / weights.sum())
        rows = order[: int(tilted * len(drawn) + round_up)]
        places = picks(weights[1:], len(rows), offset)
        # From the draw where success falls most with the teacher's preference upwards.
        upwards = np.argsort(drawn[rows] @ (opinion.weight * lean), kind="stable")
        matched = np.empty_like(places)
        matched[upwards] = places
        picked = picked_at(matched, weights[1:].shape)
        return rows, self.tokens.draws(picked, lean, TILTS, (rng, unseen))
