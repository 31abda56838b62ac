"""Errors on the wire: canonical codes, with google.rpc details that say which field and why."""

from __future__ import annotations

import inspect
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any

import grpc
import structlog
from google.protobuf.message import DecodeError, Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from unmask_server import computing
from unmask_server.access.errors import (
    CredentialsError,
    IssuerError,
    ScopeError,
    SourceNotAllowed,
)
from unmask_server.api.answers import encode
from unmask_server.api.contract import OUR_METHODS
from unmask_server.api.limits import CallRefusedError, CallTooLongError
from unmask_server.api.sizes import fit
from unmask_server.catalog.errors import (
    AlreadyExists,
    BudgetSpent,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    QuotaExceeded,
)
from unmask_server.database.faults import MESSAGES, Fault, fault_of
from unmask_server.engines.base import BadRequestError, EngineError, ModelChangedError
from unmask_server.reasons import Reason
from unmask_server.tree import VerifiersDifferError

log = structlog.get_logger(__name__)

DOMAIN = "unmask.v1"
"""The `domain` of every google.rpc.ErrorInfo."""

LARGE_BYTES = 1024
"""Requests above it are read in threads: to check a kilobyte of small parts may take 100 ms."""

RETRY_SECONDS = 1
"""What UNAVAILABLE answers suggest to wait."""
FULL_RETRY_SECONDS = 60
"""What is suggested where somebody has to make room first."""


def status_of(error: BaseException) -> status_pb2.Status | None:
    """The status that tells a client of `error`; None if it is no fault of anybody's request."""
    match error:
        case InvalidArgument():
            return status(
                Reason.INVALID_FIELD,
                str(error),
                error_details_pb2.BadRequest(
                    field_violations=[
                        error_details_pb2.BadRequest.FieldViolation(
                            field=one.field, description=one.description, reason=one.rule
                        )
                        for one in error.violations
                    ]
                ),
            )
        case DecodeError():
            return status(
                Reason.MALFORMED_REQUEST,
                f"the request cannot be read: {error}",
                error_details_pb2.BadRequest(
                    field_violations=[
                        error_details_pb2.BadRequest.FieldViolation(
                            field="request", description=f"cannot be read: {error}"
                        )
                    ]
                ),
            )
        case NotFound():
            return status(error.reason, str(error), _resource(error.kind, error.id, error))
        case AlreadyExists():
            return status(error.reason, str(error), _resource(error.kind, error.name, error))
        case FailedPrecondition():
            return _precondition(error.reason, error.message, error.field, error.metadata)
        case QuotaExceeded():
            return status(Reason.QUOTA_EXCEEDED, str(error), retry_in(error.retry_seconds))
        case CallRefusedError():
            return status(error.reason, str(error), retry_in(error.retry_seconds))
        case CallTooLongError():
            return status(Reason.CALL_TOO_LONG, str(error))
        case BudgetSpent():
            return status(Reason.BUDGET_SPENT, str(error))
        case CredentialsError() | IssuerError():
            later = [retry_in(RETRY_SECONDS)] if isinstance(error, IssuerError) else []
            return status(error.reason, str(error), *later)
        case ScopeError():
            return status(Reason.SCOPE_MISSING, str(error), metadata={"scope": error.needed.label})
        case SourceNotAllowed():
            field = error_details_pb2.BadRequest.FieldViolation(
                field=error.field, description=error.description
            )
            return status(
                Reason.SOURCE_NOT_ALLOWED,
                str(error),
                error_details_pb2.BadRequest(field_violations=[field]),
                metadata={"setting": error.setting},
            )
        case BadRequestError():
            return _precondition(Reason.MODEL_CANNOT, str(error))
        case ModelChangedError():
            return _precondition(Reason.MODEL_CHANGED, str(error))
        case VerifiersDifferError():
            return _precondition(
                Reason.OUTCOMES_MISSING,
                "rollouts were added meanwhile that have no number of an EXTERNAL verifier yet: "
                "ListRollouts with `missing_outcome_of` gives their texts, PutOutcomes takes the "
                "numbers",
            )
        case EngineError():
            return status(Reason.ENGINE_UNAVAILABLE, str(error), retry_in(RETRY_SECONDS))
        case TimeoutError() | PoolTimeoutError():
            return _status_of_fault(Fault.BUSY)
        case DBAPIError() if (fault := fault_of(error)) is not None:
            return _status_of_fault(fault)
    return None


def _status_of_fault(fault: Fault) -> status_pb2.Status:
    message = MESSAGES[fault]
    match fault:
        case Fault.SLOW:
            return status(Reason.DATABASE_SLOW, message)
        case Fault.FULL:
            return status(Reason.DATABASE_FULL, message, retry_in(FULL_RETRY_SECONDS))
    return status(Reason.DATABASE_UNAVAILABLE, message, retry_in(RETRY_SECONDS))


def _precondition(
    reason: Reason, message: str, field: str = "", metadata: Mapping[str, str] | None = None
) -> status_pb2.Status:
    violation = error_details_pb2.PreconditionFailure.Violation(
        type=reason.name, subject=field, description=message
    )
    return status(
        reason,
        f"{field}: {message}" if field else message,
        error_details_pb2.PreconditionFailure(violations=[violation]),
        metadata=metadata,
    )


def _resource(kind: str, name: str, error: Exception) -> error_details_pb2.ResourceInfo:
    return error_details_pb2.ResourceInfo(
        resource_type=kind, resource_name=name, description=str(error)
    )


def retry_in(seconds: float) -> error_details_pb2.RetryInfo:
    """When to try again, in whole seconds."""
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromSeconds(math.ceil(seconds))
    return retry


def status(
    reason: Reason, message: str, *details: Any, metadata: Mapping[str, str] | None = None
) -> status_pb2.Status:
    """The status of a reason, with its code.

    Args:
        reason: why the call fails.
        message: for people; it may change.
        details: messages of google.rpc, those that `reason` lists.
        metadata: of the ErrorInfo.

    """
    made = status_pb2.Status(code=code_pb2.Code.Value(reason.value.code), message=message)
    info = error_details_pb2.ErrorInfo(reason=reason.name, domain=DOMAIN, metadata=metadata)
    for detail in (info, *details):
        made.details.add().Pack(detail)
    return fit(made)


Servicer = Callable[[Any, grpc.aio.ServicerContext[Any, Any]], Any]
Parse = Callable[[bytes], Message]


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Turns domain errors into statuses, and anything unforeseen into a logged INTERNAL."""

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wrap the call's handler."""
        handler: Any = await continuation(handler_call_details)
        if handler is None:
            return None
        method, parse = handler_call_details.method, handler.request_deserializer
        # Requests are parsed within the guards: what gRPC parses itself and cannot is UNKNOWN.
        if handler.request_streaming:
            return grpc.stream_stream_rpc_method_handler(
                _guard_streams(handler.stream_stream, parse, method), response_serializer=encode
            )
        if handler.response_streaming:
            # The health service writes its answers itself.
            yields = inspect.isasyncgenfunction(handler.unary_stream)
            guard = _guard_stream if yields else _guard_unary
            return grpc.unary_stream_rpc_method_handler(
                guard(handler.unary_stream, parse, method), response_serializer=encode
            )
        return grpc.unary_unary_rpc_method_handler(
            _guard_unary(handler.unary_unary, parse, method), response_serializer=encode
        )


def _guard_unary(call: Servicer, parse: Parse, method: str) -> Servicer:
    async def guarded(data: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            return await call(await _read(data, parse), context)
        except Exception as error:
            await _abort(context, error, method)

    return guarded


def _guard_stream(call: Servicer, parse: Parse, method: str) -> Servicer:
    async def guarded(
        data: bytes, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[Any]:
        try:
            async with aclosing(call(await _read(data, parse), context)) as responses:
                async for response in responses:
                    yield response
        except Exception as error:
            await _abort(context, error, method)

    return guarded


def _guard_streams(call: Servicer, parse: Parse, method: str) -> Servicer:
    async def guarded(
        parts: AsyncIterator[bytes], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[Any]:
        requests = (await _read(data, parse) async for data in parts)
        try:
            async with aclosing(call(requests, context)) as responses:
                async for response in responses:
                    yield response
        except Exception as error:
            await _abort(context, error, method)

    return guarded


async def _read(data: bytes, parse: Parse) -> Message:
    """The request. Raises DecodeError, and what the contract's rules say: InvalidArgument."""
    if len(data) > LARGE_BYTES:
        return await computing.parse(parse, data)
    return parse(data)


def _forget_frames(error: BaseException) -> None:
    """Let go of what an error's frames hold, the request above all.

    They and the error hold each other, so it would stay until somebody collects such circles.
    """
    raised: BaseException | None = error
    # Causes may go round in a circle.
    seen: set[int] = set()
    while raised is not None and id(raised) not in seen:
        seen.add(id(raised))
        raised.__traceback__ = None
        raised = raised.__cause__ or raised.__context__


async def _abort(
    context: grpc.aio.ServicerContext[Any, Any], error: Exception, method: str
) -> None:
    # What was said already, or cannot be said any more: the client is gone.
    if isinstance(error, grpc.aio.AbortError | grpc.aio.UsageError | grpc.aio.InternalError):
        raise error
    if isinstance(error, NotImplementedError) and not method.startswith(OUR_METHODS):
        # A method of the health service that its package does not have yet.
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{method} is not implemented")
    found = status_of(error)
    if found is not None:
        _forget_frames(error)
    else:
        log.error("unforeseen error", method=method, exc_info=error)
        found = status(Reason.UNFORESEEN, "an unforeseen error; see the server's log")
    await context.abort_with_status(rpc_status.to_status(found))
