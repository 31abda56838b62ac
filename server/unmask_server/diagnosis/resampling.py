"""Sums over nodes, and their statistics on resamples of questions, trajectories and draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unmask_server.diagnosis.intervals import Interval
from unmask_server.diagnosis.selection import is_kept
from unmask_server.diagnosis.terms import Draws

FloatArray = NDArray[np.float64]
Key = tuple[str, str]
"""A question and a trajectory."""

RESAMPLES = 1000
"""Resamples behind an interval."""

ROWS = (
    *("cosine", "cosines", "gain", "ideal", "descent", "advantage", "advantages"),
    *("kept_cosine", "kept", "kept_gain", "kept_descent"),
)
"""What is summed: `cosines`, `advantages` and `kept` count the nodes that have one or are; gain,
|g|^2 and |d|^2 are over the nodes where all three are known, those of the kept over the kept."""

_IDEAL, _COSINES, _KEPT = ROWS.index("ideal"), ROWS.index("cosines"), ROWS.index("kept")

Sums = tuple[FloatArray, ...]
"""One entry for each of `ROWS`, shape (size,), or (1,) where there is no spread."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """A set's statistics on every resample, shape (RESAMPLES,); NaN where undefined."""

    mean_cosine: FloatArray
    pooled_cosine: FloatArray
    gain_per_unit_step: FloatArray
    mean_advantage: FloatArray
    kept_cosine: FloatArray
    kept_gain_per_unit_step: FloatArray
    scored: int
    """Nodes with a cosine, in the set itself."""
    kept: int
    """Of them kept."""


@dataclass(frozen=True, slots=True)
class Resamples:
    """Which trajectories and draws come up in which resample: the same for every teacher."""

    keys: tuple[Key, ...]
    """Sorted."""
    weights: FloatArray
    """How often each trajectory counts, shape (RESAMPLES, trajectories)."""
    places: FloatArray
    """Which draw is taken, as a share of them in [0, 1), shape (RESAMPLES, trajectories). One for
    all trajectories of a question: a node that they share has the same draw in all of them."""

    @classmethod
    def of(cls, keys: Sequence[Key], *, seed: int) -> Resamples:
        """Resamples of these trajectories. Equal keys and seed give equal resamples."""
        return cls.of_groups([keys], seed=seed)[0]

    @classmethod
    def of_groups(cls, groups: Sequence[Sequence[Key]], *, seed: int) -> list[Resamples]:
        """Resamples of groups of trajectories together: the same questions come up in all of them.

        Trajectories are drawn within their group, so that each stays what it is (the incorrect ones
        of a question, say); a group may be empty in a resample.
        """
        ordered = [tuple(sorted(keys)) for keys in groups]
        rng = np.random.default_rng(seed)
        questions = sorted({question for keys in ordered for question, _ in keys})
        count = len(questions)
        found = [
            cls(keys, np.zeros((RESAMPLES, len(keys))), np.zeros((RESAMPLES, len(keys))))
            for keys in ordered
        ]
        if not count:
            return found
        times = rng.multinomial(count, np.full(count, 1.0 / count), size=RESAMPLES)
        for k, question in enumerate(questions):
            for group in found:
                members = [i for i, (of, _) in enumerate(group.keys) if of == question]
                if members:
                    # A question that came up twice has its trajectories drawn twice.
                    even = np.full(len(members), 1.0 / len(members))
                    drawn = rng.multinomial(times[:, k] * len(members), even)
                    group.weights[:, members] = drawn
            place = rng.random((RESAMPLES, 1))
            for group in found:
                members = [i for i, (of, _) in enumerate(group.keys) if of == question]
                group.places[:, members] = place
        return found

    def statistics(self, sums: Mapping[Key, Sums]) -> Statistics:
        """Statistics of sums over just these trajectories."""
        totals = np.zeros((len(ROWS), RESAMPLES))
        whole = np.zeros(len(ROWS))
        for k, key in enumerate(self.keys):
            size = max(len(row) for row in sums[key])
            picked = (self.places[:, k] * size).astype(np.intp)
            for i, row in enumerate(sums[key]):
                totals[i] += self.weights[:, k] * (row if len(row) == 1 else row[picked])
                whole[i] += float(row.mean())
        cosine, cosines, gain, ideal, descent, advantage, advantages, *rest = totals
        kept_cosine, kept, kept_gain, kept_descent = rest
        unit = _ratio(gain, np.sqrt(descent.clip(0.0)))
        pooled = np.full(RESAMPLES, np.nan)
        if whole[_IDEAL] > 0.0:
            # Where a resample's |g|^2 is not above zero, the ratio has run to its bound.
            pooled = np.clip(unit / np.sqrt(ideal.clip(1e-300)), -1.0, 1.0)
        return Statistics(
            mean_cosine=_ratio(cosine, cosines),
            pooled_cosine=pooled,
            gain_per_unit_step=unit,
            mean_advantage=_ratio(advantage, advantages),
            kept_cosine=_ratio(kept_cosine, kept),
            kept_gain_per_unit_step=_ratio(kept_gain, np.sqrt(kept_descent.clip(0.0))),
            scored=round(whole[_COSINES]),
            kept=round(whole[_KEPT]),
        )


def node_sums(draws: Draws) -> Sums:
    """A node's part in its trajectory's sums."""
    rows: dict[str, FloatArray | float] = {}
    if draws.cosine is not None:
        rows |= {"cosine": draws.cosine, "cosines": 1.0}
        if is_kept(draws.cosine):
            rows |= {"kept_cosine": draws.cosine, "kept": 1.0}
            if draws.shrunk_gain is not None and draws.shrunk_descent_norm2 is not None:
                rows["kept_gain"] = draws.shrunk_gain
                rows["kept_descent"] = draws.shrunk_descent_norm2
    if draws.gain is not None and draws.ideal_norm2 is not None and draws.descent_norm2 is not None:
        rows |= {
            "gain": draws.gain,
            "ideal": draws.ideal_norm2,
            "descent": draws.descent_norm2,
        }
    if draws.advantage is not None:
        rows |= {"advantage": draws.advantage, "advantages": 1.0}
    return tuple(np.atleast_1d(np.asarray(rows.get(name, 0.0), dtype=np.float64)) for name in ROWS)


def added(one: Sums, other: Sums) -> Sums:
    """Two sums together; an entry without spread counts alike in every draw."""
    return tuple(a + b for a, b in zip(one, other, strict=True))


def interval(values: FloatArray, *, least: float = 0.5) -> Interval | None:
    """Over the resamples where the statistic is defined; None unless these are most of them.

    Args:
        values: shape (RESAMPLES,), NaN where undefined.
        least: the share of the resamples of which there must be more, in [0, 1).

    """
    defined = values[np.isfinite(values)]
    return Interval.of(defined) if len(defined) > least * len(values) else None


def _ratio(above: FloatArray, below: FloatArray) -> FloatArray:
    """NaN where there is nothing to divide by."""
    result: FloatArray = np.full(len(above), np.nan)
    np.divide(above, below, out=result, where=below > 0.0)
    return result
