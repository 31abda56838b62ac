"""Every call as it is seen from outside: its request id, its access line, its metrics, its span."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import grpc
import structlog
from google.protobuf import descriptor_pool
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from unmask_server.api.callers import client_of
from unmask_server.api.contract import OUR_METHODS
from unmask_server.api.errors import status
from unmask_server.api.guard import TELL_SECONDS
from unmask_server.reasons import Reason
from unmask_server.telemetry import calls, metrics, tracing
from unmask_server.telemetry.rpcs import COUNTS, OK, UNKNOWN, MethodCounts

log = structlog.get_logger("unmask_server.access")

AccessLog = Literal["all", "computed", "failed", "off"]
"""Which calls get a line: all; all but those answered from memory; those that failed; none."""

_ERROR = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS)
_WARNING = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
)
_DETAILS = "grpc-status-details-bin"
_MAX_CLIENT = 200
"""Characters of a client's name that are logged."""

Context = grpc.aio.ServicerContext[Any, Any]


class ObservingInterceptor(grpc.aio.ServerInterceptor):
    """Outermost: whatever the interceptors within it make of a call is seen here."""

    def __init__(
        self,
        access_log: AccessLog,
        pool: descriptor_pool.DescriptorPool,
        services: Sequence[str],
        largest: int,
    ) -> None:
        """Observe some services.

        Args:
            access_log: which calls get a line.
            pool: where all services of the server are described; others are not told by name.
            services: full names of those that are counted from the start.
            largest: bytes of an answer; gRPC itself would not say what to do about a larger one.

        """
        self._access_log = access_log
        self._pool = pool
        self._largest = largest
        self._observed: dict[str, tuple[Any, grpc.RpcMethodHandler[Any, Any]]] = {}
        self._methods: dict[str, _Method] = {}
        for service in services:
            for one in pool.FindServiceByName(service).methods:
                path = f"/{service}/{one.name}"
                if (method := _Method.of(path, pool)) is not None:
                    self._methods[path] = method

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Begin the call, and observe its handler."""
        name = handler_call_details.method
        calls.begin(handler_call_details.invocation_metadata)
        handler: Any = await continuation(handler_call_details)
        if handler is None:
            _NO_METHOD.counts.started += 1
            _NO_METHOD.counts.end(grpc.StatusCode.UNIMPLEMENTED, 0.0)
            return None
        known = self._observed.get(name)
        if known is not None and known[0] is handler:
            return known[1]
        method = self._methods.get(name) or _Method.of(name, self._pool)
        if method is None:
            # Somebody refuses it; nothing is kept for whatever clients think of.
            return self._observe(_NO_METHOD, handler)
        observed = self._observe(method, handler)
        self._methods[name], self._observed[name] = method, (handler, observed)
        return observed

    def _observe(self, method: _Method, handler: Any) -> grpc.RpcMethodHandler[Any, Any]:
        streams = (bool(handler.request_streaming), bool(handler.response_streaming))
        inner = next(
            call
            for call in (handler.unary_unary, handler.unary_stream, handler.stream_unary,
                         handler.stream_stream)
            if call is not None
        )  # fmt: skip
        if not (inspect.iscoroutinefunction(inner) or inspect.isasyncgenfunction(inner)):
            return handler  # type: ignore[no-any-return]
        # This API's answers are made bytes here, for their sizes.
        serialize = handler.response_serializer if method.is_ours else None
        observed = _observed(method, inner, serialize, self._access_log, self._largest)
        return _FACTORIES[streams](  # type: ignore[no-any-return]
            observed,
            request_deserializer=handler.request_deserializer,
            response_serializer=None if method.is_ours else handler.response_serializer,
        )


_TYPES = {
    (False, False): "unary",
    (False, True): "server_stream",
    (True, False): "client_stream",
    (True, True): "bidi_stream",
}
"""By whether requests and responses are streams."""
_FACTORIES: dict[tuple[bool, bool], Callable[..., Any]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


@dataclass(frozen=True, slots=True)
class _Method:
    """A method, and what is counted of it."""

    name: str
    """`package.Service/Method`."""
    is_ours: bool
    counts: MethodCounts

    @staticmethod
    def of(path: str, pool: descriptor_pool.DescriptorPool) -> _Method | None:
        """By its descriptor: who refuses a call may put a handler of another kind in its place."""
        name = path.removeprefix("/")
        service, _, method = name.rpartition("/")
        try:
            found = pool.FindServiceByName(service).methods_by_name[method]
        except KeyError:
            return None
        kind = _TYPES[found.client_streaming, found.server_streaming]
        return _Method(name, path.startswith(OUR_METHODS), COUNTS.method(service, method, kind))


_NO_METHOD = _Method(f"{UNKNOWN}/{UNKNOWN}", False, COUNTS.unknown)


def _observed(
    method: _Method,
    inner: Callable[..., Any],
    serialize: Callable[[Any], bytes] | None,
    access_log: AccessLog,
    largest: int,
) -> Callable[[Any, Context], Awaitable[Any]]:
    """A handler that does what `inner` does, and tells of it."""
    is_generator = inspect.isasyncgenfunction(inner)
    counts = method.counts

    async def encoded(
        response: Any, serialize: Callable[[Any], bytes], context: Context, call: calls.Call
    ) -> bytes:
        data = serialize(response)
        if len(data) > largest:
            await _refuse_large(_Context(context, call), len(data), largest)
        call.sent += len(data)
        return data

    async def stream(request: Any, context: Context, call: calls.Call) -> None:
        async with aclosing(inner(request, _Context(context, call))) as responses:
            async for response in responses:
                if serialize is not None:
                    response = await encoded(response, serialize, context, call)
                await _write(context, response)

    async def observe(request: Any, context: Context) -> Any:
        call = calls.current()
        assert call is not None
        call.begun = time.perf_counter()
        context.set_trailing_metadata(((calls.REQUEST_ID, call.id),))
        counts.started += 1
        code = OK
        try:
            if is_generator:
                return await stream(request, context, call)
            response = await inner(request, _Context(context, call))
            if serialize is not None:
                response = await encoded(response, serialize, context, call)
            return response
        except BaseException as error:
            code = _code(context, error)
            raise
        finally:
            code = _known(context.code()) or code
            seconds = time.perf_counter() - call.begun
            counts.end(code, seconds)
            if method.is_ours:
                counts.received += len(call.request)
                counts.sent += call.sent
            if code is not OK:
                metrics.ERRORS.labels(call.reason or code.name).inc()
            if tracing.is_on():
                tracing.note(failed=code in _ERROR, **{"rpc.grpc.status_code": code.value[0]})
            if _is_logged(access_log, call, code, method):
                _log(method, call, code, seconds, context)

    if not tracing.is_on():
        return observe

    async def traced(request: Any, context: Context) -> Any:
        with tracing.serving(method.name, context.invocation_metadata() or ()):
            return await observe(request, context)

    return traced


async def _write(context: Context, response: Any) -> None:
    """Write an answer, to its end: in its middle a call cannot be told why it is ended.

    An answer that its client does not take is given up after `TELL_SECONDS`.
    """
    writing = asyncio.ensure_future(context.write(response))
    try:
        await asyncio.shield(writing)
    except asyncio.CancelledError:
        await asyncio.wait([writing], timeout=TELL_SECONDS)
        # Of a client that is gone there is nothing to be told.
        if not writing.cancel() and not writing.cancelled():
            writing.exception()
        raise


class _Context:
    """A call's context; what it reads is noted, and however it ends, its request id is told."""

    __slots__ = ("_call", "_context")

    def __init__(self, context: Context, call: calls.Call) -> None:
        self._context = context
        self._call = call

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def read(self) -> Any:
        """See `grpc.aio.ServicerContext.read`."""
        message = await self._context.read()
        if isinstance(message, bytes):
            self._call.request = message
            self._call.begun = time.perf_counter()
        return message

    def set_trailing_metadata(self, trailing_metadata: Iterable[tuple[str, str | bytes]]) -> None:
        """See `grpc.aio.ServicerContext.set_trailing_metadata`; the request id stays."""
        told = ((calls.REQUEST_ID, self._call.id), *trailing_metadata)
        self._context.set_trailing_metadata(told)

    async def abort(
        self,
        code: grpc.StatusCode,
        details: str = "",
        trailing_metadata: Iterable[tuple[str, str | bytes]] = (),
    ) -> NoReturn:
        """See `grpc.aio.ServicerContext.abort`."""
        metadata = dict(trailing_metadata)
        told = metadata.pop(_DETAILS, b"")
        said = status_pb2.Status(code=code.value[0], message=details)
        if isinstance(told, bytes):
            said.MergeFromString(told)
        info = error_details_pb2.ErrorInfo()
        self._call.reason = next((info.reason for any_ in said.details if any_.Unpack(info)), "")
        said.details.add().Pack(error_details_pb2.RequestInfo(request_id=self._call.id))
        metadata |= {calls.REQUEST_ID: self._call.id, _DETAILS: said.SerializeToString()}
        await self._context.abort(code, details, tuple(metadata.items()))
        raise AssertionError("gRPC has raised")

    async def abort_with_status(self, status: Any) -> NoReturn:
        """See `grpc.aio.ServicerContext.abort_with_status`."""
        await self.abort(status.code, status.details, status.trailing_metadata)


async def _refuse_large(context: _Context, size: int, largest: int) -> NoReturn:
    message = (
        f"the answer has {size} bytes, more than the {largest} that this server sends "
        "(max_message_mib): ask for less at once; what the call did is kept"
    )
    await context.abort_with_status(rpc_status.to_status(status(Reason.ANSWER_TOO_LARGE, message)))
    raise AssertionError("gRPC has raised")


def _is_logged(
    access_log: AccessLog, call: calls.Call, code: grpc.StatusCode, method: _Method
) -> bool:
    if access_log == "off":
        return False
    if code is not OK:
        return True
    # Health checks come every second.
    return method.is_ours and access_log != "failed" and (access_log == "all" or not call.cached)


def _log(
    method: _Method,
    call: calls.Call,
    code: grpc.StatusCode,
    seconds: float,
    context: Context,
) -> None:
    caller = client_of(context)
    fields: dict[str, Any] = {
        "request_id": call.id,
        "method": method.name,
        "code": code.name,
        "ms": round(1000.0 * seconds, 2),
        "client": (caller.principal or caller.name)[:_MAX_CLIENT],
        "peer": caller.address,
    }
    if method.is_ours:
        fields |= {"received": len(call.request), "sent": call.sent, "cached": call.cached}
    if call.reason:
        fields["reason"] = call.reason
    say = log.error if code in _ERROR else log.warning if code in _WARNING else log.info
    say("call", **fields)


def _code(context: Context, error: BaseException) -> grpc.StatusCode:
    """What the client is told of a call that ends with an error nobody has told it of."""
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        left = context.time_remaining()
        late = left is not None and left <= 0.0
        return grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED
    return grpc.StatusCode.UNKNOWN


def _known(code: Any) -> grpc.StatusCode | None:
    """The code that was set, if one was; gRPC takes its numbers, too."""
    if code is None or isinstance(code, grpc.StatusCode):
        return code
    return next((one for one in grpc.StatusCode if one.value[0] == code), grpc.StatusCode.UNKNOWN)
