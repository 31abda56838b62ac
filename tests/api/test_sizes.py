"""Requests of very many parts, and errors that would not fit a header."""

from __future__ import annotations

import time
from urllib.parse import quote

import pytest
from google.rpc import error_details_pb2
from unmask.v1 import catalog_pb2, sharing_pb2
from unmask_server.api.contract import Contract, contract_pool
from unmask_server.api.errors import status_of
from unmask_server.api.sizes import MAX_DETAILS, MAX_ITEMS, MAX_PARTS, refuse_many
from unmask_server.catalog.errors import InvalidArgument, NotFound

from tests.fuzz import wire


def test_a_list_that_is_too_long_is_refused_by_its_field() -> None:
    request = catalog_pb2.PutTeacherDistributionsRequest()
    request.distributions.extend([catalog_pb2.TeacherDistribution()] * (MAX_ITEMS + 1))
    with pytest.raises(InvalidArgument) as caught:
        refuse_many(request)
    assert caught.value.field == "distributions"
    del request.distributions[0]
    refuse_many(request)


def test_many_parts_in_parts_are_refused_too() -> None:
    request = sharing_pb2.ImportCacheRequest()
    rollout = request.records.rollouts.add()
    rollout.outcomes.extend([sharing_pb2.SharedOutcome()] * MAX_ITEMS)
    refuse_many(request)
    for _ in range(MAX_PARTS // MAX_ITEMS):
        request.records.rollouts.add().CopyFrom(rollout)
    with pytest.raises(InvalidArgument) as caught:
        refuse_many(request)
    assert caught.value.field.startswith("records.rollouts[")


def test_a_small_request_of_many_parts_is_refused_before_its_parts_are_checked() -> None:
    check = Contract(contract_pool()).reader("/unmask.v1.CatalogService/PutTeacherDistributions")
    begun = time.process_time()
    with pytest.raises(InvalidArgument):
        check((wire.tag(2, 2) + b"\0") * 500_000)
    # One by one they would take minutes.
    assert time.process_time() - begun < 20


@pytest.mark.parametrize("text", ["x" * 3_000_000, "🙂" * 5000, "%" * 5000, "\n" * 5000])
def test_an_error_fits_a_header_whatever_it_quotes(text: str) -> None:
    for error in (InvalidArgument("name" + text, f"is {text}"), NotFound("policy", text)):
        found = status_of(error)
        assert found is not None
        assert len(quote(found.message, safe="".join(map(chr, range(32, 127))))) < 6000
        assert sum(len(one.value) for one in found.details) < MAX_DETAILS


def test_of_many_violations_the_first_are_told() -> None:
    many = InvalidArgument.of(
        [v for i in range(50) for v in InvalidArgument(f"f{i}", "y" * 400).violations]
    )
    found = status_of(many)
    assert found is not None
    bad = error_details_pb2.BadRequest()
    assert any(detail.Unpack(bad) for detail in found.details)
    assert 1 < len(bad.field_violations) < 50
    assert bad.field_violations[0].field == "f0"
