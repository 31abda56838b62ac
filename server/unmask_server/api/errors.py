"""Errors on the wire: canonical codes, with google.rpc details that say which field and why."""

from __future__ import annotations

import inspect
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import structlog
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from unmask_server.api.answers import encode
from unmask_server.api.texts import refuse_nul
from unmask_server.catalog.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    QuotaExceeded,
)
from unmask_server.database.faults import MESSAGES, Fault, fault_of
from unmask_server.engines.base import BadRequestError, EngineError, ModelChangedError
from unmask_server.tree import VerifiersDifferError

log = structlog.get_logger(__name__)

DOMAIN = "unmask.v1"
"""The `domain` of every google.rpc.ErrorInfo."""

RETRY_SECONDS = 1
"""What UNAVAILABLE answers suggest to wait."""


def status_of(error: BaseException) -> status_pb2.Status | None:
    """The status that tells a client of `error`; None if it is no fault of anybody's request."""
    match error:
        case InvalidArgument():
            return _status(
                code_pb2.INVALID_ARGUMENT,
                f"{error.field}: {error.reason}",
                "INVALID_ARGUMENT",
                error_details_pb2.BadRequest(
                    field_violations=[
                        error_details_pb2.BadRequest.FieldViolation(
                            field=error.field, description=error.reason
                        )
                    ]
                ),
            )
        case NotFound():
            return _status(
                code_pb2.NOT_FOUND,
                str(error),
                "NOT_FOUND",
                error_details_pb2.ResourceInfo(
                    resource_type=error.kind, resource_name=error.id, description=str(error)
                ),
            )
        case AlreadyExists():
            return _status(code_pb2.ALREADY_EXISTS, str(error), "ALREADY_EXISTS")
        case FailedPrecondition():
            return _status(code_pb2.FAILED_PRECONDITION, str(error), "FAILED_PRECONDITION")
        case QuotaExceeded():
            retry = error_details_pb2.RetryInfo()
            retry.retry_delay.FromSeconds(math.ceil(error.retry_seconds))
            return _status(code_pb2.RESOURCE_EXHAUSTED, str(error), "QUOTA_EXCEEDED", retry)
        case BadRequestError():
            return _status(code_pb2.FAILED_PRECONDITION, str(error), "MODEL_CANNOT")
        case ModelChangedError():
            return _status(code_pb2.FAILED_PRECONDITION, str(error), "MODEL_CHANGED")
        case VerifiersDifferError():
            return _status(
                code_pb2.FAILED_PRECONDITION,
                "rollouts were added meanwhile that have no number of an EXTERNAL verifier yet: "
                "ListRollouts with `missing` gives their texts, PutOutcomes takes the numbers",
                "FAILED_PRECONDITION",
            )
        case EngineError():
            return _unavailable(str(error), "ENGINE_UNAVAILABLE")
        case TimeoutError() | PoolTimeoutError():
            return _unavailable(MESSAGES[Fault.BUSY], "DATABASE_UNAVAILABLE")
        case DBAPIError() if (fault := fault_of(error)) is not None:
            return _status_of_fault(fault)
    return None


def _status_of_fault(fault: Fault) -> status_pb2.Status:
    message = MESSAGES[fault]
    match fault:
        case Fault.SLOW:
            return _status(code_pb2.DEADLINE_EXCEEDED, message, "DATABASE_SLOW")
        case Fault.FULL:
            return _status(code_pb2.RESOURCE_EXHAUSTED, message, "DATABASE_FULL")
    return _unavailable(message, "DATABASE_UNAVAILABLE")


def _unavailable(message: str, reason: str) -> status_pb2.Status:
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromSeconds(RETRY_SECONDS)
    return _status(code_pb2.UNAVAILABLE, message, reason, retry)


def _status(code: int, message: str, reason: str, *details: Any) -> status_pb2.Status:
    status = status_pb2.Status(code=code, message=message)
    info = error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN)
    for detail in (info, *details):
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


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
            return await call(_parsed(data, parse), context)
        except Exception as error:
            await _abort(context, error, method)

    return guarded


def _guard_stream(call: Servicer, parse: Parse, method: str) -> Servicer:
    async def guarded(
        data: bytes, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[Any]:
        try:
            async for response in call(_parsed(data, parse), context):
                yield response
        except Exception as error:
            await _abort(context, error, method)

    return guarded


def _guard_streams(call: Servicer, parse: Parse, method: str) -> Servicer:
    async def guarded(
        parts: AsyncIterator[bytes], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[Any]:
        requests = (_parsed(data, parse) async for data in parts)
        try:
            async for response in call(requests, context):
                yield response
        except Exception as error:
            await _abort(context, error, method)

    return guarded


def _parsed(data: bytes, parse: Parse) -> Message:
    """The request, if its texts can be kept. Raises InvalidArgument."""
    try:
        request = parse(data)
    except DecodeError as error:
        raise InvalidArgument("request", f"cannot be read: {error}") from None
    # Almost every request has no zero byte at all, and looking for one is cheap.
    if b"\0" in data:
        refuse_nul(request)
    return request


async def _abort(
    context: grpc.aio.ServicerContext[Any, Any], error: Exception, method: str
) -> None:
    # What gRPC raised, or what the health service does not implement: the code is set already.
    if isinstance(error, grpc.aio.AbortError | NotImplementedError):
        raise error
    if (status := status_of(error)) is not None:
        await context.abort_with_status(rpc_status.to_status(status))
    log.error("unforeseen error", method=method, exc_info=error)
    await context.abort(grpc.StatusCode.INTERNAL, "an unforeseen error; see the server's log")
