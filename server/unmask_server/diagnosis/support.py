"""The tokens that a node's numbers are about: candidates, and one bucket for all others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]

TAIL_ID = -1
"""Stands for the tail bucket where a token id is asked for."""

TAIL_RESOLUTION = 1e-6
"""Mass below this cannot be told from the rounding of float32 log-probabilities that add up to 1:
a tail so small is known only to be at most this."""


@dataclass(frozen=True, slots=True)
class Support:
    """Candidate ids; every array over a support has one more entry, the tail bucket, last."""

    ids: NDArray[np.int32]
    """Shape (m,), without duplicates."""

    @property
    def tail(self) -> int:
        """Index of the tail bucket: m."""
        return len(self.ids)

    def index(self, token: int) -> int:
        """Index of `token` in the support: the tail's if it is no candidate."""
        found = np.flatnonzero(self.ids == token)
        return int(found[0]) if len(found) else self.tail

    def token(self, index: int) -> int:
        """Id at `index`; `TAIL_ID` for the tail."""
        return TAIL_ID if index == self.tail else int(self.ids[index])


def candidate_ids(
    student_top: ArrayLike, teacher_tops: Iterable[ArrayLike], observed: int | None = None
) -> NDArray[np.int32]:
    """The student's likeliest tokens, then each teacher's, then the observed one.

    Args:
        student_top: ids by falling probability.
        teacher_tops: likewise, one for each teacher.
        observed: the token that was taken, if one was.

    Returns:
        Shape (m,), each id once, where it comes first.

    """
    parts: list[Sequence[int]] = [np.asarray(student_top).tolist()]
    parts.extend(np.asarray(top).tolist() for top in teacher_tops)
    if observed is not None:
        parts.append([observed])
    ordered = dict.fromkeys(int(token) for part in parts for token in part)
    return np.fromiter(ordered, dtype=np.int32, count=len(ordered))


def with_tail(probabilities: ArrayLike) -> FloatArray:
    """Append what the candidates lack to one; shape (..., m) to (..., m + 1).

    A lack below `TAIL_RESOLUTION` is rounding and becomes an empty tail. Candidates that sum to
    more than one by rounding are kept as they are.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    lack = 1.0 - np.sum(p, axis=-1, keepdims=True)
    return np.concatenate([p, np.where(lack < TAIL_RESOLUTION, 0.0, lack)], axis=-1)


def covered_mass(p: ArrayLike) -> float:
    """Mass on the candidates, in [0, 1]; `p` of shape (m + 1,), tail last."""
    return float(np.clip(np.sum(np.asarray(p, dtype=np.float64)[:-1]), 0.0, 1.0))


def effective_support(p: ArrayLike) -> float:
    """1 / sum P^2 over the candidates, P renormalised over them: how many are really in play.

    Args:
        p: shape (m + 1,), tail last; the tail, not being one token, does not count.

    Returns:
        In [1, m]; 0 if the candidates carry no mass.

    """
    candidates = np.asarray(p, dtype=np.float64)[:-1]
    squares = float(candidates @ candidates)
    return float(candidates.sum()) ** 2 / squares if squares > 0.0 else 0.0
