"""Objectives as texts and mappings: weighted sums of verifiers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from unmask.v1 import diagnosis_pb2 as pb

if TYPE_CHECKING:
    from unmask.requests.refs import Ref

OWN = "own"
"""In texts and mappings: the question's own verifier."""

Terms = str | Mapping[str, float] | Iterable[pb.ObjectiveTerm]
"""A weighted sum: `correct=1,length=-0.1`, the same as a mapping, or messages. Verifiers are named
by id or name; `own` is the question's own."""


def parse_terms(terms: Terms) -> list[pb.ObjectiveTerm]:
    """The messages for a weighted sum; empty: none.

    Raises:
        ValueError: a text that is none.

    """
    if isinstance(terms, str):
        terms = _weights(terms)
    if isinstance(terms, Mapping):
        return [
            pb.ObjectiveTerm(verifier="" if name == OWN else name, weight=weight)
            for name, weight in terms.items()
        ]
    return list(terms)


def parse_objective(objective: Ref | Mapping[str, float] | pb.Objective) -> pb.Objective:
    """The message for what rollouts are to be graded by: a verifier, or a weighted sum of several.

    A text with `=` is a sum; without, the id or name of a verifier, or `own`.
    """
    match objective:
        case pb.Objective():
            return objective
        case str() if "=" not in objective:
            return pb.Objective(verifier="" if objective == OWN else objective)
        case str() | Mapping():
            return pb.Objective(terms=parse_terms(objective))
        case _:
            return pb.Objective(verifier=objective.id)


def _weights(text: str) -> dict[str, float]:
    weights: dict[str, float] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        name, equals, weight = part.rpartition("=")
        name = name.strip()
        try:
            number = float(weight)
        except ValueError:
            number, equals = 0.0, ""
        if not name or not equals:
            raise ValueError(f"objective: {part!r} is not VERIFIER=WEIGHT, as in own=1,length=-0.1")
        if name in weights:
            raise ValueError(f"objective: {name!r} is named twice")
        weights[name] = number
    return weights
