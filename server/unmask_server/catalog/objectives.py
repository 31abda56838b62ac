"""Weighted sums of verifiers, as they are written down."""

from __future__ import annotations

import math
from collections.abc import Sequence

from unmask_server.catalog.errors import InvalidArgument
from unmask_server.catalog.types import Verifier

MAX_TERMS = 16
MAX_WEIGHT = 1e6
MIN_WEIGHT = 1e-6
"""Weights further from or nearer to zero are no preferences, and sums of them lose their digits."""


def parse_weight(text: str, field: str) -> float:
    """A weight that was given as text. Raises InvalidArgument."""
    try:
        return float(text)
    except ValueError:
        raise InvalidArgument(field, f"{text!r} is no number") from None


def objective_options(terms: Sequence[tuple[Verifier, float]], field: str) -> dict[str, str]:
    """Options of the verifier of kind OBJECTIVE for a sum: weights by verifiers' ids, ascending.

    An objective among the terms enters with its own terms, weighed; terms without weight are left
    out. So the same sum is the same verifier, however it is put.

    Raises:
        InvalidArgument: a weight is not finite or out of range, a verifier is named twice, there
            are more than `MAX_TERMS`, or nothing is left.

    """
    given = [verifier.id for verifier, _ in terms]
    weights: dict[str, float] = {}
    for i, (verifier, weight) in enumerate(terms):
        if not (weight == 0.0 or MIN_WEIGHT <= abs(weight) <= MAX_WEIGHT):
            raise InvalidArgument(
                field,
                f"weight {weight} of {verifier.name or verifier.id} is not 0 and its size is not "
                f"in {MIN_WEIGHT:g} to {MAX_WEIGHT:g}",
            )
        if verifier.id in given[:i]:
            raise InvalidArgument(field, f"{verifier.name or verifier.id} is named twice")
        for part, inner in verifier.terms or ((verifier, 1.0),):
            weights[part.id] = math.fsum((weights.get(part.id, 0.0), weight * inner))
    kept = {part: weight for part, weight in sorted(weights.items()) if weight != 0.0}
    if not kept:
        raise InvalidArgument(field, "give at least one verifier a weight that is not zero")
    if len(kept) > MAX_TERMS:
        raise InvalidArgument(field, f"{len(kept)} terms are more than {MAX_TERMS}")
    return {part: repr(float(weight)) for part, weight in kept.items()}
