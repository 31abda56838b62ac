"""Intervals for statistics that the server does not have: resampled over questions, then
trajectories."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from unmask.findings.finding import Range

RESAMPLES = 200
Item = TypeVar("Item")
Sample = Mapping[str, Mapping[str, Sequence[Item]]]
"""Items by question and trajectory."""


def interval(sample: Sample[Item], statistic: Callable[[list[Item]], float | None]) -> Range | None:
    """A statistic of all items, with the 5% and 95% quantiles over resamples.

    Args:
        sample: what is resampled: questions, then each one's trajectories.
        statistic: of the items of a resample; None where it is not defined.

    Returns:
        None where it is not defined for all of them, or for most resamples. The same sample gives
        the same interval.

    """
    whole = statistic([item for by in sample.values() for items in by.values() for item in items])
    if whole is None:
        return None
    rng = random.Random(0)
    questions = sorted(sample)
    found = []
    for _ in range(RESAMPLES):
        items: list[Item] = []
        for question in rng.choices(questions, k=len(questions)):
            trajectories = sorted(sample[question])
            for trajectory in rng.choices(trajectories, k=len(trajectories)):
                items += sample[question][trajectory]
        value = statistic(items)
        if value is not None:
            found.append(value)
    if len(found) <= RESAMPLES / 2:
        return None
    found.sort()
    return Range(whole, found[int(0.05 * len(found))], found[int(0.95 * len(found))])


def rank_correlation(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Spearman's rho: the correlation of ranks, ties sharing theirs; None below three pairs."""
    if len(pairs) < 3:
        return None
    first, second = _ranks([a for a, _ in pairs]), _ranks([b for _, b in pairs])
    middle = (len(pairs) - 1) / 2
    covariance = sum((a - middle) * (b - middle) for a, b in zip(first, second, strict=True))
    spread = sum((a - middle) ** 2 for a in first) * sum((b - middle) ** 2 for b in second)
    return covariance / spread**0.5 if spread > 0 else None


def reliability(cosines: Sequence[Range]) -> float | None:
    """The share of the cosines' variance that is not noise, in [0, 1]; None below three of them.

    Posterior medians vary by what is true less what noise shrinks them by, and each posterior's
    own variance is what is missing: var(true) = var(medians) + mean(posterior variance).
    """
    if len(cosines) < 3:
        return None
    middle = sum(c.median for c in cosines) / len(cosines)
    varied = sum((c.median - middle) ** 2 for c in cosines) / (len(cosines) - 1)
    noise = sum(c.deviation**2 for c in cosines) / len(cosines)
    return varied / (varied + noise) if varied + noise > 0.0 else None


def _ranks(values: Sequence[float]) -> list[float]:
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0.0] * len(values)
    start = 0
    while start < len(order):
        end = start
        while end + 1 < len(order) and values[order[end + 1]] == values[order[start]]:
            end += 1
        for place in order[start : end + 1]:
            ranks[place] = (start + end) / 2
        start = end + 1
    return ranks
