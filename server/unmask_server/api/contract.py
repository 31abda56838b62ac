"""The contract as it is enforced: every request is read and checked here before it is served.

The rules are protovalidate's (https://protovalidate.com), in proto/. The Python stubs know nothing
of them, so that clients need no `buf.validate`; the whole contract is in contract.binpb.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib import resources
from typing import Any

import grpc
import protovalidate
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message

from unmask_server.api.sizes import refuse_many
from unmask_server.api.texts import refuse_nul
from unmask_server.api.violations import field_violation
from unmask_server.catalog.errors import InvalidArgument

OUR_METHODS = "/unmask.v1."
SMALL_BYTES = 1024
"""Of requests up to it all violations are looked for, of larger ones the first."""
MAX_TOLD = 20
"""So many violations are told of one request."""


def contract_pool(*others: bytes) -> descriptor_pool.DescriptorPool:
    """The contract with its rules, and all that it imports, in a pool of their own.

    Args:
        others: files of other services to be in it, too, serialised.

    """
    data = resources.files("unmask_server").joinpath("contract.binpb").read_bytes()
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(data).file:
        pool.Add(file)
    for other in others:
        pool.AddSerializedFile(other)
    return pool


class Contract:
    """Checks requests by the rules of their messages."""

    def __init__(self, pool: descriptor_pool.DescriptorPool) -> None:
        self._pool = pool
        self._validator = protovalidate.Validator()

    def reader(self, method: str) -> Callable[[bytes], None]:
        """What checks the bytes of a method's requests.

        Args:
            method: its path, `/unmask.v1.Service/Method`.

        Returns:
            A function that raises DecodeError, or InvalidArgument with the fields.

        """
        service, _, name = method.removeprefix("/").rpartition("/")
        described = self._pool.FindServiceByName(service).methods_by_name[name].input_type
        message_class = message_factory.GetMessageClass(described)

        def check(data: bytes) -> None:
            message = message_class.FromString(data)
            refuse_many(message)
            # Almost every request has no zero byte at all.
            if b"\0" in data:
                refuse_nul(message)
            self._check(message, len(data))

        return check

    def _check(self, message: Message, size: int) -> None:
        # A violation costs fifty microseconds, and two bytes can hold four of them.
        first = self._validator.collect_violations(message, fail_fast=True)
        if first:
            found = first if size > SMALL_BYTES else self._validator.collect_violations(message)
            # What is wrong with one field comes before what is wrong with several together.
            found.sort(key=lambda one: not one.proto.rule)
            told = [field_violation(message.DESCRIPTOR, one) for one in found[:MAX_TOLD]]
            raise InvalidArgument.of(told)


class ContractInterceptor(grpc.aio.ServerInterceptor):
    """Has requests of ours checked where they are parsed. Innermost: whoever parses is outside."""

    def __init__(self, contract: Contract) -> None:
        self._contract = contract

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """The call's handler, with another deserialiser."""
        handler: Any = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or not method.startswith(OUR_METHODS):
            return handler  # type: ignore[no-any-return]
        check, parse = self._contract.reader(method), handler.request_deserializer

        def checked(data: bytes) -> Any:
            try:
                check(data)
            except InvalidArgument as error:
                # The frames hold what was parsed, up to thirty times the request.
                raise error.with_traceback(None) from None
            return parse(data)

        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                handler.unary_stream, checked, handler.response_serializer
            )
        return grpc.unary_unary_rpc_method_handler(
            handler.unary_unary, checked, handler.response_serializer
        )
