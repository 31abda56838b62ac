"""Whether generations can be samples of a policy: scored by its own model, and compared.

Two statements, each a mean over the tokens of some generations:

- *distance*: how far the log-probabilities that came with them are from the model's. Engines tell
  them before or after temperature and cuts, so the nearest of these three counts.
- *surprise*: log p of each token less its expectation under the policy at that position. For the
  policy's own samples these are martingale differences, whatever the lengths and ends of the
  generations: their sum has mean 0, and the variances of the terms add up. Ids beyond the likeliest
  `TOP` count as if each had the probability of the last of these, in the term and in its
  expectation alike, so that both are exact without knowing the rest. It tells other settings, other
  prompts and unrelated models; a checkpoint nearby differs in directions that nobody knows, and is
  told by its log-probabilities alone.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unmask_server.catalog import Catalog
from unmask_server.catalog.errors import FailedPrecondition
from unmask_server.catalog.types import Policy
from unmask_server.engines import observed
from unmask_server.engines.base import RAW, ZERO_LOGPROB, PositionScores, Sampling, ScoreRequest
from unmask_server.engines.pool import EnginePool
from unmask_server.reasons import Reason

FloatArray = NDArray[np.float64]

TOP = 64
"""Likeliest ids that are looked at one by one."""
ERRORS = 4.0
"""Standard errors that a surprise may have by chance, ..."""
SLACK = 0.2
"""... and the share of the tolerance that it may have besides: engines round differently, but the
distances of tokens, which the tolerance is for, cancel in their mean."""
IMPOSSIBLE_SHARE = 2e-3
"""Of tokens that the policy's cuts leave no probability: engines differ at the edge of a cut."""


@dataclass(frozen=True, slots=True)
class Scorable:
    """A generation, its prompt, and what the trainer's engine said of it."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Of each token, in nats; empty if it said nothing."""


@dataclass(frozen=True, slots=True)
class Fit:
    """What `PolicyFit.measure` found."""

    generations: int
    tokens: int
    distance: float | None
    """In nats; None where no log-probabilities came."""
    surprise: float
    """In nats."""
    surprise_error: float
    """Standard error of the surprise."""
    impossible: int
    """Tokens that the policy's cuts leave no probability."""

    def problem(self, tolerance: float) -> str | None:
        """Why these are no samples of the policy; None if they may be.

        Args:
            tolerance: in nats, for the distance; see `SLACK` for the surprise. Within `ERRORS`
                standard errors that is no sign of anything, so few tokens show little.

        """
        where = f"over {self.tokens} tokens of {self.generations} generations"
        if self.impossible > max(1.0, IMPOSSIBLE_SHARE * self.tokens):
            return (
                f"{self.impossible} tokens have probability 0 under the policy's sampling settings "
                f"({where})"
            )
        if self.distance is not None and self.distance > tolerance:
            return (
                f"the log-probabilities differ from the policy's own by {self.distance:.3g} nats a "
                f"token ({where}; tolerance {tolerance:g})"
            )
        allowed = ERRORS * self.surprise_error + SLACK * tolerance
        if abs(self.surprise) > allowed:
            likely = "likelier" if self.surprise > 0 else "less likely"
            return (
                f"the tokens are {likely} than the policy's own by {abs(self.surprise):.3g} nats a "
                f"token, with a standard error of {self.surprise_error:.2g} ({where}; "
                f"{allowed:.2g} are allowed)"
            )
        return None


class PolicyFit:
    """Scores generations by a policy's model."""

    def __init__(self, catalog: Catalog, engines: EnginePool) -> None:
        self._catalog = catalog
        self._engines = engines

    async def measure(self, policy: Policy, given: Sequence[Scorable]) -> Fit:
        """Compare generations with the policy; at least one.

        Raises:
            FailedPrecondition: prompt and tokens do not fit the model.
            EngineError: the model cannot run now.

        """
        vocab_size = await asyncio.to_thread(self._catalog.usable_vocab, policy.model)
        with self._engines.hold(policy.model):
            engine = await self._engines.get(policy.model, vocab_size)
            warm = Sampling(policy.sampling.temperature)
            # Each once, the policy's own last.
            views = tuple(dict.fromkeys((RAW, warm, policy.sampling)))
            scores = await asyncio.gather(
                *(
                    observed.score(
                        engine,
                        ScoreRequest(
                            prompt=one.prompt,
                            continuation=one.tokens,
                            positions=tuple(range(len(one.tokens))),
                            top_k=min(TOP, vocab_size),
                            views=views,
                            also=tuple((token,) for token in one.tokens),
                        ),
                    )
                    for one in given
                )
            )
        return compare(given, scores, top=min(TOP, vocab_size), vocab_size=vocab_size)


def compare(
    given: Sequence[Scorable],
    scores: Sequence[Sequence[PositionScores]],
    *,
    top: int,
    vocab_size: int,
) -> Fit:
    """Compute a `Fit` from scores.

    Args:
        given: the generations.
        scores: one a generation and position, under some views, the policy's sampling being the
            last; the first `top` ids are the likeliest.
        top: how many of the ids are the likeliest.
        vocab_size: how many there are.

    """
    total = variance = 0.0
    tokens = impossible = 0
    distances: list[FloatArray] = []
    for one, positions in zip(given, scores, strict=True):
        own = np.empty((len(one.tokens), len(positions[0].logprobs)))
        for t, (token, at) in enumerate(zip(one.tokens, positions, strict=True)):
            place = int(np.flatnonzero(at.ids == token)[0])
            own[t] = at.logprobs[:, place]
            likeliest = at.logprobs[-1, :top].astype(np.float64)
            least, mean, spread = _expected(likeliest, complete=top >= vocab_size)
            impossible += bool(own[t, -1] <= ZERO_LOGPROB)
            total += max(float(own[t, -1]), least) - mean
            variance += spread
        tokens += len(one.tokens)
        if one.logprobs:
            told = np.maximum(np.asarray(one.logprobs), ZERO_LOGPROB)
            distances.append(np.abs(told[:, None] - own))
    distance = None
    if distances:
        # Cut-off tokens are counted as impossible, not as far away.
        each = np.minimum(np.concatenate(distances), 50.0)
        distance = float(each.mean(axis=0).min())
    return Fit(
        generations=len(given),
        tokens=tokens,
        distance=distance,
        surprise=total / tokens,
        surprise_error=math.sqrt(variance) / tokens,
        impossible=impossible,
    )


def _expected(logprobs: FloatArray, *, complete: bool) -> tuple[float, float, float]:
    """The least log p that counts as itself; mean and variance of log p, at least that.

    Args:
        logprobs: of the likeliest ids under the policy's sampling; `ZERO_LOGPROB` where it is cut.
        complete: whether these are all ids.

    """
    possible = logprobs[logprobs > ZERO_LOGPROB]
    p = np.exp(possible)
    least = float(possible.min())
    cut = len(possible) < len(logprobs)
    rest = 0.0 if complete or cut else max(0.0, 1.0 - float(p.sum()))
    whole = float(p.sum()) + rest
    mean = (float(p @ possible) + rest * least) / whole
    square = (float(p @ possible**2) + rest * least**2) / whole
    return least, mean, max(0.0, square - mean**2)


def refuse(fit: Fit, policy: Policy, tolerance: float) -> None:
    """Raise FailedPrecondition where generations are not the policy's."""
    if problem := fit.problem(tolerance):
        raise FailedPrecondition(
            Reason.GENERATIONS_DIFFER,
            f"the generations are not those of policy {policy.id}, its fingerprint does not fit: "
            f"{problem}; they are another checkpoint's, or were sampled with other settings or "
            "after another prompt",
            policy=policy.id,
        )
