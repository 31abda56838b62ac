"""What every error must carry, by its reason."""

from __future__ import annotations

from google.rpc import code_pb2, error_details_pb2, status_pb2
from unmask_server.reasons import Reason, Retry

PREFIX = "google.rpc."


def reason_of(status: status_pb2.Status) -> Reason:
    """The reason of an error, after a look at whether it carries what the table says."""
    kinds = [detail.TypeName().removeprefix(PREFIX) for detail in status.details]
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.domain == "unmask.v1"
    reason = Reason[info.reason]
    meaning = reason.value
    assert code_pb2.Code.Name(status.code) == meaning.code
    # Calls have ids, and errors tell them.
    assert [kind for kind in kinds if kind != "RequestInfo"] == ["ErrorInfo", *meaning.details]
    assert info.metadata.keys() <= set(meaning.metadata)
    assert ("RetryInfo" in kinds) == (meaning.retry is Retry.LATER)
    for detail in status.details:
        _look_at(detail, reason)
    return reason


def _look_at(detail: object, reason: Reason) -> None:
    bad, failed = error_details_pb2.BadRequest(), error_details_pb2.PreconditionFailure()
    resource, retry = error_details_pb2.ResourceInfo(), error_details_pb2.RetryInfo()
    if detail.Unpack(bad):  # type: ignore[attr-defined]
        assert bad.field_violations
        assert all(one.field and one.description for one in bad.field_violations)
    elif detail.Unpack(failed):  # type: ignore[attr-defined]
        assert [one.type for one in failed.violations] == [reason.name]
        assert all(one.description for one in failed.violations)
    elif detail.Unpack(resource):  # type: ignore[attr-defined]
        assert resource.resource_type
        assert resource.resource_name or reason.name.endswith("_NOT_FOUND")
    elif detail.Unpack(retry):  # type: ignore[attr-defined]
        assert retry.retry_delay.ToTimedelta().total_seconds() > 0
