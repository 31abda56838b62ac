"""A request that is refused is let go of at once, however large it was as a message."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from unmask.v1 import catalog_pb2
from unmask_server.api.contract import Contract, ContractInterceptor, contract_pool
from unmask_server.api.errors import ErrorInterceptor, _forget_frames
from unmask_server.catalog.errors import InvalidArgument

from tests.fuzz import wire

METHOD = "/unmask.v1.CatalogService/RegisterQuestions"


class Details:
    """Of a call."""

    method = METHOD
    invocation_metadata = ()


class Refused:
    """A call that is answered with an error."""

    async def abort_with_status(self, status: Any) -> None:
        raise grpc.aio.AbortError


class Large:
    """What a call works with."""


def held(traceback: TracebackType | None) -> Iterator[object]:
    """What the frames of an error hold."""
    while traceback is not None:
        yield from traceback.tb_frame.f_locals.values()
        traceback = traceback.tb_next


async def test_the_error_of_a_request_with_too_many_parts_holds_no_message() -> None:
    async def handler(details: Any) -> Any:
        parse = catalog_pb2.RegisterQuestionsRequest.FromString
        return grpc.unary_unary_rpc_method_handler(lambda *_: None, request_deserializer=parse)

    interceptor: Any = ContractInterceptor(Contract(contract_pool()))
    checked = (await interceptor.intercept_service(handler, Details())).request_deserializer
    for data in ((wire.tag(1, 2) + b"\0") * 20_000, b""):
        with pytest.raises(InvalidArgument) as caught:
            checked(data)
        assert not [one for one in held(caught.value.__traceback__) if isinstance(one, Message)]


async def test_what_a_refused_call_worked_with_goes_when_the_call_ends() -> None:
    seen: list[weakref.ref[Large]] = []

    async def call(request: Any, context: Any) -> Any:
        large = Large()
        seen.append(weakref.ref(large))
        try:
            raise KeyError(repr(large))
        except KeyError as error:
            raise InvalidArgument("name", "is unknown") from error

    async def handler(details: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(call, request_deserializer=bytes)

    interceptor: Any = ErrorInterceptor()
    guarded = (await interceptor.intercept_service(handler, Details())).unary_unary
    gc.disable()
    try:
        # gRPC keeps this error with its call, and that may stay until circles are collected.
        with pytest.raises(grpc.aio.AbortError) as kept:
            await guarded(b"", Refused())
        assert kept.value.__context__ is not None
        assert [one() for one in seen] == [None]
    finally:
        gc.enable()


def test_errors_that_caused_each_other_are_let_go_of() -> None:
    raised: list[Exception] = []
    for error in (ValueError(), KeyError()):
        try:
            raise error
        except (ValueError, KeyError) as caught:
            raised.append(caught)
    one, other = raised
    one.__cause__, other.__cause__ = other, one
    # In a thread of its own: one that never ends holds nobody up.
    forgetting = threading.Thread(target=_forget_frames, args=(one,), daemon=True)
    forgetting.start()
    forgetting.join(30)
    ends = not forgetting.is_alive()
    one.__cause__ = None
    assert ends
    assert one.__traceback__ is other.__traceback__ is None
