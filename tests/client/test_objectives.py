"""Objectives as users write them."""

from __future__ import annotations

import pytest
from unmask.objectives import parse_objective, parse_terms
from unmask.v1 import catalog_pb2
from unmask.v1 import diagnosis_pb2 as pb

TERMS = [
    pb.ObjectiveTerm(verifier="", weight=1.0),
    pb.ObjectiveTerm(verifier="short", weight=-0.1),
]


def test_texts_mappings_and_messages_say_the_same() -> None:
    for written in ("own=1,short=-0.1", " own = 1 , short = -1e-1 ", {"own": 1, "short": -0.1},
                    TERMS):  # fmt: skip
        assert parse_terms(written) == TERMS
    assert parse_terms("") == []
    # The last `=` is the weight's.
    assert parse_terms("a=b=2") == [pb.ObjectiveTerm(verifier="a=b", weight=2.0)]


def test_an_objective_is_a_verifier_or_a_sum() -> None:
    assert parse_objective("own") == pb.Objective()
    assert parse_objective("short") == pb.Objective(verifier="short")
    assert parse_objective(catalog_pb2.Verifier(id="ver-1")) == pb.Objective(verifier="ver-1")
    assert parse_objective("own=1,short=-0.1") == pb.Objective(terms=TERMS)
    assert parse_objective({"own": 1, "short": -0.1}) == pb.Objective(terms=TERMS)


@pytest.mark.parametrize("text", ["own", "own=", "=1", "own=much", "own=1,own=2"])
def test_what_is_no_sum_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="objective"):
        parse_terms(text)
