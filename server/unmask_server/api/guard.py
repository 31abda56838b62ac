"""Every call of ours on its way in and out: whose it is, how long it may take, when it must go."""

from __future__ import annotations

import asyncio
import enum
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from typing import Any

import grpc
import structlog
from google.protobuf.message import DecodeError
from grpc_status import rpc_status

from unmask_server.api.callers import client_of
from unmask_server.api.contract import OUR_METHODS
from unmask_server.api.errors import status_of
from unmask_server.api.limits import (
    CallRefusedError,
    CallTooLongError,
    ClientCounts,
    ClientLimits,
    ServerStoppingError,
)
from unmask_server.config import Settings

log = structlog.get_logger(__name__)

SWEEP_SECONDS = 0.5
"""How often calls are looked through for those that took too long."""
TELL_SECONDS = 1.0
"""What it may take to tell a client why its call was ended."""
OPEN_SECONDS = 10.0
"""What the message of a call of health or reflection may take to come."""
ENDLESS = frozenset(("/unmask.v1.GrowthService/WatchGrowth",))
"""Streams that go on for as long as something else does: they end as soon as the server stops."""
STOPPING = "the server stops; the call may be made again, at another server or after the restart"
STOPPING_SECONDS = 1.0
"""When to try again then."""
CANCEL_SECONDS = 0.1
"""So soon gRPC cancels a call whose message cannot be read."""

_QUICK = ("Get", "List", "Preview", "Cancel", "Pause", "Resume", "Extend")


class Kind(enum.Enum):
    """How long calls may take."""

    QUICK = "quick"
    """What the database alone answers."""
    WORK = "work"
    """What may have a model loaded, sampled from or scored with, or files read."""
    STREAM = "stream"

    @classmethod
    def of(cls, method: str, *, is_stream: bool) -> Kind:
        """Of a method by its path."""
        if is_stream:
            return cls.STREAM
        service, _, name = method.rpartition("/")
        quick = name.startswith(_QUICK) and not service.endswith("DiagnosisService")
        return cls.QUICK if quick else cls.WORK


@dataclass(slots=True)
class _Running:
    """A call that is being handled."""

    kind: Kind
    is_endless: bool
    ends_at: float
    """Of `time.monotonic()`."""
    end: Exception | None = None
    """Why the server itself ended it."""


Task = asyncio.Task[Any]


class CallGuard(grpc.aio.ServerInterceptor):
    """Counts calls by client, ends those that take too long, and all when the server stops.

    A call is counted before its message is read: gRPC reads a message before it calls a handler,
    but for handlers of streams of messages, so these are such, and read the one themselves.

    Health and reflection are counted apart, and neither timed nor refused while the server stops:
    whoever looks after a server must get in.
    """

    def __init__(self, settings: Settings) -> None:
        limits = ClientLimits.of(settings)
        self._counts = ClientCounts(limits)
        self._counts_open = ClientCounts(replace(limits, rate=0.0))
        self._seconds = {
            Kind.QUICK: settings.deadline_seconds or float("inf"),
            Kind.WORK: settings.deadline_work_seconds or float("inf"),
            Kind.STREAM: settings.deadline_stream_seconds or float("inf"),
        }
        self._running: dict[Task, _Running] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._stops = False
        self._sweeper: Task | None = None
        self._wrapped: dict[str, tuple[Any, Any]] = {}

    @property
    def running(self) -> int:
        """How many calls are being handled."""
        return len(self._running)

    def start(self) -> None:
        """Begin to look for calls that take too long."""
        self._sweeper = asyncio.create_task(self._sweep())

    async def drain(self, grace: float) -> None:
        """Take no more calls and see those that run to their end, for at most `grace` seconds.

        Whatever has no end of its own is told at once that the server stops; after the grace all
        the others are.
        """
        self._stops = True
        for task, call in self._running.items():
            if call.is_endless:
                self._end(task, call, ServerStoppingError(STOPPING, STOPPING_SECONDS))
        try:
            async with asyncio.timeout(grace):
                await self._idle.wait()
        except TimeoutError:
            log.warning("calls are cut off", calls=len(self._running))
            for task, call in self._running.items():
                self._end(task, call, ServerStoppingError(STOPPING, STOPPING_SECONDS))
            # What they have to put away, such as rollouts that were sampled, they do now.
            # The last one may have ended in this very moment.
            if self._running:
                await asyncio.wait(list(self._running), timeout=max(1.0, grace))
        if self._sweeper is not None:
            self._sweeper.cancel()

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wrap the method's handler, once."""
        handler: Any = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None:
            return None
        known = self._wrapped.get(method)
        if known is None or known[0] is not handler:
            known = self._wrapped[method] = (handler, self._wrap(handler, method))
        return known[1]  # type: ignore[no-any-return]

    def _wrap(self, handler: Any, method: str) -> Any:
        kind = Kind.of(method, is_stream=handler.response_streaming)
        if not method.startswith(OUR_METHODS):
            guarded = self._open(handler, is_stream=handler.response_streaming)
        elif handler.response_streaming:
            guarded = self._stream(handler.unary_stream, kind, method in ENDLESS)
        else:
            guarded = self._unary(handler.unary_unary, kind)
        make = (
            grpc.stream_stream_rpc_method_handler
            if handler.response_streaming
            else grpc.stream_unary_rpc_method_handler
        )
        return make(guarded, handler.request_deserializer, handler.response_serializer)

    def _unary(self, call: Any, kind: Kind) -> Any:
        async def guarded(_: Any, context: Any) -> Any:
            client = client_of(context).limited
            running = await self._enter(client, kind, context)
            try:
                return await call(await _message(context), context)
            except asyncio.CancelledError:
                await self._tell(running, context)
                raise
            finally:
                self._leave(client, kind)

        return guarded

    def _stream(self, call: Any, kind: Kind, is_endless: bool) -> Any:
        async def guarded(_: Any, context: Any) -> AsyncIterator[Any]:
            client = client_of(context).limited
            running = await self._enter(client, kind, context, is_endless=is_endless)
            try:
                async with aclosing(call(await _message(context), context)) as responses:
                    async for response in responses:
                        yield response
            # The latter where it was ended while an answer was being written.
            except (asyncio.CancelledError, GeneratorExit):
                await self._tell(running, context)
                raise
            finally:
                self._leave(client, kind)

        return guarded

    def _open(self, handler: Any, *, is_stream: bool) -> Any:
        """Of a method of health or reflection."""
        counts = self._counts_open

        async def enter(context: Any) -> str:
            client = client_of(context).limited
            try:
                counts.enter(client, is_stream=is_stream)
            except CallRefusedError as error:
                await _abort(context, error)
            return client

        async def guarded(_: Any, context: Any) -> Any:
            client = await enter(context)
            try:
                # Health's streams are written by their handlers.
                call = handler.unary_stream if is_stream else handler.unary_unary
                try:
                    async with asyncio.timeout(OPEN_SECONDS):
                        message = await _message(context)
                except TimeoutError:
                    await _abort(context, CallTooLongError("no message came"))
                return await call(message, context)
            finally:
                counts.leave(client, is_stream=is_stream)

        async def guarded_stream(requests: Any, context: Any) -> AsyncIterator[Any]:
            client = await enter(context)
            try:
                async for response in handler.stream_stream(requests, context):
                    yield response
            finally:
                counts.leave(client, is_stream=True)

        return guarded_stream if handler.request_streaming else guarded

    async def _enter(
        self, client: str, kind: Kind, context: Any, *, is_endless: bool = False
    ) -> _Running:
        try:
            if self._stops:
                raise ServerStoppingError(STOPPING, STOPPING_SECONDS)
            self._counts.enter(client, is_stream=kind is Kind.STREAM)
        except CallRefusedError as error:
            await _abort(context, error)
        running = _Running(kind, is_endless, time.monotonic() + self._seconds[kind])
        task = asyncio.current_task()
        assert task is not None
        self._running[task] = running
        self._idle.clear()
        return running

    def _leave(self, client: str, kind: Kind) -> None:
        self._counts.leave(client, is_stream=kind is Kind.STREAM)
        task = asyncio.current_task()
        if task is not None:
            self._running.pop(task, None)
        if not self._running:
            self._idle.set()

    def _end(self, task: Task, call: _Running, why: Exception) -> None:
        if call.end is None:
            call.end = why
            task.cancel()

    async def _tell(self, running: _Running, context: Any) -> None:
        """Tell the client why its call was ended here; if it ended it itself, nothing."""
        if running.end is None:
            return
        task = asyncio.current_task()
        assert task is not None
        task.uncancel()
        # Behind an answer that its client does not take, the word waits; the call does not.
        with suppress(TimeoutError):
            async with asyncio.timeout(TELL_SECONDS):
                await _abort(context, running.end)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            now = time.monotonic()
            for task, call in self._running.items():
                if now >= call.ends_at:
                    self._end(
                        task,
                        call,
                        CallTooLongError(
                            f"the call took longer than the {self._seconds[call.kind]:g} s that "
                            "one of its kind may here; what it stored is kept: make it again, or "
                            "ask for less at once"
                        ),
                    )


async def _message(context: Any) -> Any:
    """The message of a call that has one."""
    message = await context.read()
    if message is grpc.aio.EOF:
        # So it is, too, where the client has given up or sends too much; then gRPC cancels this.
        await asyncio.sleep(CANCEL_SECONDS)
        await _abort(context, DecodeError("no message was sent"))
    return message


async def _abort(context: Any, error: Exception) -> None:
    status = status_of(error)
    assert status is not None
    await context.abort_with_status(rpc_status.to_status(status))
