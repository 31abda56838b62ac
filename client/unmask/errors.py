"""What went wrong, readable: the code, the message, and which field of the request was meant.

Servers send google.rpc details (https://google.aip.dev/193) in the trailing metadata. The few
messages of interest are decoded here by hand, so that the client needs no package for them.
docs/errors.md lists all reasons.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError

_DETAILS_KEY = "grpc-status-details-bin"
_TYPE_PREFIX = "type.googleapis.com/google.rpc."
_SERVERS_FAULT = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """A field of a request that was refused."""

    field: str
    """Its path, e.g. `sampling.temperature` or `targets[2].trajectory`."""
    description: str
    """Why."""
    reason: str = ""
    """The rule of the contract that it breaks, e.g. `STRING_MAX_LEN`; empty: no stated one."""


@dataclass(slots=True)
class Details:
    """What a server says of an error for programs; see the attributes of `UnmaskError`."""

    reason: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    violations: tuple[FieldViolation, ...] = ()
    resource: tuple[str, str] | None = None
    retry_seconds: float | None = None


class UnmaskError(grpc.RpcError):
    """A call failed.

    It is a `grpc.RpcError` with the usual `code()`, `details()` and `trailing_metadata()`; the one
    that gRPC raised is its `__cause__`. Subclasses exist for the codes that a program may want to
    tell apart.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        *,
        details: Details | None = None,
        trailing_metadata: tuple[tuple[str, str | bytes], ...] = (),
    ) -> None:
        super().__init__(message)
        found = details or Details()
        self.message = message
        """What the server said."""
        self.reason = found.reason
        """Tells causes apart, e.g. `TOKENIZER_MISMATCH`; empty for errors that gRPC made itself."""
        self.metadata = found.metadata
        """What the server adds to the reason, e.g. `{"policy": "pol-…", "teacher": "tea-…"}`."""
        self.violations = found.violations
        """The fields that were refused, for INVALID_ARGUMENT."""
        self.resource = found.resource
        """The kind of thing that is not there or there already, and its id or name; or None."""
        self.retry_seconds = found.retry_seconds
        """When to try again; None: the server does not say that it helps."""
        self._code = code
        self._metadata = trailing_metadata

    @property
    def request_id(self) -> str:
        """By which the server's logs tell of the call; empty if it did not get there."""
        return next((str(v) for key, v in self._metadata if key == "x-request-id"), "")

    def code(self) -> grpc.StatusCode:
        """The canonical code."""
        return self._code

    def details(self) -> str:
        """The same as `message`, as gRPC names it."""
        return self.message

    def trailing_metadata(self) -> Any:
        """What came with the answer."""
        return self._metadata

    def __str__(self) -> str:
        """One line: the code, the message, and fields that the message doesn't name.

        Of a fault of the server's also the request id, for whoever reads its logs.
        """
        more = "".join(
            f"; {violation.field}: {violation.description}"
            for violation in self.violations
            if violation.field not in self.message
        )
        if self._code in _SERVERS_FAULT and self.request_id:
            more += f" (request {self.request_id})"
        return f"{self._code.name}: {self.message}{more}"


class InvalidArgumentError(UnmaskError):
    """A field of the request cannot be right; see `violations`."""


class NotFoundError(UnmaskError):
    """No such policy, teacher, question, trajectory or growth."""


class AlreadyExistsError(UnmaskError):
    """The name or the request_id belongs to something else."""


class FailedPreconditionError(UnmaskError):
    """The request is sound, but not for these things, e.g. a teacher with another tokenizer."""


class ResourceExhaustedError(UnmaskError):
    """A quota or a limit is used up, or a message is too large; see `reason`, `retry_seconds`."""


class UnavailableError(UnmaskError):
    """The server, or a model that it needs, cannot be reached; the same call may work later."""


class DeadlineExceededError(UnmaskError):
    """The answer took longer than the client's `timeout`."""


class UnauthenticatedError(UnmaskError):
    """The server wants a token, and this one is none of its tokens."""


class PermissionDeniedError(UnmaskError):
    """Who calls is known and may not do this; or nobody may: the server does not name that model
    directory or host among those that requests may use."""


class GrowthFailedError(UnmaskError):
    """A growth was given up; what it sampled is kept."""


_CLASSES: dict[grpc.StatusCode, type[UnmaskError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgumentError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExistsError,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPreconditionError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhaustedError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDeniedError,
    grpc.StatusCode.UNAUTHENTICATED: UnauthenticatedError,
}


def from_rpc_error(error: Any) -> UnmaskError:
    """The readable form of an error that gRPC raised; to be raised `from` it."""
    code: grpc.StatusCode = error.code()
    metadata = tuple((key, value) for key, value in error.trailing_metadata() or ())
    details = Details()
    for key, value in metadata:
        if key == _DETAILS_KEY and isinstance(value, bytes):
            details = _decode_status(value)
    return _CLASSES.get(code, UnmaskError)(
        code, error.details() or code.name, details=details, trailing_metadata=metadata
    )


def _decode_status(data: bytes) -> Details:
    """What a serialised google.rpc.Status says.

    Details that are malformed or of other kinds are passed over: the message says enough.
    """
    found = Details()
    try:
        for number, detail in _fields(data):
            if number != 3:  # Status.details, a repeated google.protobuf.Any
                continue
            packed = dict(_fields(detail))  # type_url = 1, value = 2
            _add(found, _text(packed, 1).removeprefix(_TYPE_PREFIX), packed.get(2, b""))
    except (DecodeError, IndexError, UnicodeDecodeError, ValueError):
        return Details()
    return found


def _add(found: Details, kind: str, value: bytes) -> None:
    fields = list(_fields(value))
    match kind:
        case "ErrorInfo":  # reason = 1, metadata = 3
            found.reason = _text(dict(fields), 1)
            entries = [dict(_fields(entry)) for number, entry in fields if number == 3]
            found.metadata = {_text(entry, 1): _text(entry, 2) for entry in entries}
        case "BadRequest":  # field = 1, description = 2, reason = 3
            violations = [dict(_fields(violation)) for _, violation in fields]
            found.violations = tuple(
                FieldViolation(_text(one, 1), _text(one, 2), _text(one, 3)) for one in violations
            )
        case "ResourceInfo":  # resource_type = 1, resource_name = 2
            found.resource = _text(dict(fields), 1), _text(dict(fields), 2)
        case "RetryInfo":  # retry_delay = 1, a google.protobuf.Duration
            delay = Duration.FromString(dict(fields).get(1, b""))
            found.retry_seconds = delay.seconds + delay.nanos / 1e9


def _text(fields: Mapping[int, bytes], number: int) -> str:
    return fields.get(number, b"").decode()


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The length-delimited fields of a serialised message, as (number, content)."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        wire_type = tag & 7
        if wire_type == 0:
            _, at = _varint(data, at)
        elif wire_type == 2:
            length, at = _varint(data, at)
            if at + length > len(data):
                raise ValueError("cut off")
            yield tag >> 3, data[at : at + length]
            at += length
        else:  # fixed32 and fixed64; groups are not in use
            at += {1: 8, 5: 4}[wire_type] if wire_type in (1, 5) else len(data)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
