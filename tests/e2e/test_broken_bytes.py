"""Bytes that are no request are refused like any other mistake, whatever the method."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from grpc_status import rpc_status

from tests.e2e.conftest import World
from tests.fuzz import wire
from tests.fuzz.rpcs import all_rpcs

BROKEN = {
    "cut off": b"\n\x05abc",
    "a group without an end": b"\x0b",
    "groups in groups": b"\x0b" * 20_000,
    "a tag of no type": b"\x0f",
    "a length beyond all": b"\n\x80\x80\x80\x80\x10",
    "a number without an end": b"\x08" + b"\xff" * 11,
}


async def refusal(call: AsyncIterator[bytes]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            pass
    return caught.value


async def test_every_method_refuses_bytes_that_are_no_request(world: World) -> None:
    channel = world.stubs.channel
    for rpc in all_rpcs():
        if rpc.name.endswith("Health/List"):
            continue  # the health service has no such method
        for what, data in BROKEN.items():
            if rpc.streams:
                call = channel.unary_stream(rpc.path)(data)
            else:
                call = channel.stream_stream(rpc.path)([data])
            error = await refusal(call)
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, (rpc.path, what)
            status = rpc_status.from_call(error)
            assert status is not None
            bad = error_details_pb2.BadRequest()
            assert any(detail.Unpack(bad) for detail in status.details), (rpc.path, what)
            assert bad.field_violations[0].field == "request"


async def test_the_health_service_answers_as_ever(world: World) -> None:
    channel = world.stubs.channel
    serving = health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)
    assert await channel.unary_unary("/grpc.health.v1.Health/Check")(b"") == (
        serving.SerializeToString()
    )
    watch = channel.unary_stream("/grpc.health.v1.Health/Watch")(b"")
    assert await watch.read() == serving.SerializeToString()
    watch.cancel()
    error = await refusal(channel.stream_stream("/grpc.health.v1.Health/List")([b""]))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_reflection_refuses_them_too(world: World) -> None:
    path = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    error = await refusal(world.stubs.channel.stream_stream(path)([b"\n\x05abc"]))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_reflection_answers_or_refuses_whatever_it_is_sent(world: World) -> None:
    rng = random.Random(5)
    asked = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="unmask.v1.Node"),
        reflection_pb2.ServerReflectionRequest(file_by_filename="unmask/v1/catalog.proto"),
        reflection_pb2.ServerReflectionRequest(
            file_containing_extension=reflection_pb2.ExtensionRequest(
                containing_type="google.protobuf.FieldOptions", extension_number=1159
            )
        ),
        reflection_pb2.ServerReflectionRequest(all_extension_numbers_of_type="no.such\0Type"),
        reflection_pb2.ServerReflectionRequest(host="x" * 20_000),
    ]
    whole = [request.SerializeToString() for request in asked]
    descriptor = reflection_pb2.ServerReflectionRequest.DESCRIPTOR
    ended: Counter[grpc.StatusCode] = Counter()
    for _ in range(400):
        version = rng.choice(("v1alpha", "v1"))
        path = f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
        sent = [rng.choice(whole) for _ in range(rng.randrange(3))]
        # The last one: gRPC's client calls it INTERNAL if it has more for a call that was refused.
        if rng.random() < 0.7:
            sent.append(wire.broken(rng, rng.choice(whole), rng.choice(whole), descriptor))
        call = world.stubs.channel.stream_stream(path)(sent)
        try:
            answers = [data async for data in call]
        except grpc.aio.AioRpcError as error:
            ended[error.code()] += 1
        else:
            ended[grpc.StatusCode.OK] += 1
            assert len(answers) == len(sent)
    assert set(ended) == {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT}, ended


async def test_text_that_is_no_utf_8_is_refused(world: World) -> None:
    path = "/unmask.v1.CatalogService/GetPolicy"
    for text in (b"\xff", b"\xed\xa0\x80", b"\xc0\x80"):
        data = b"\n" + bytes([len(text)]) + text
        error = await refusal(world.stubs.channel.stream_stream(path)([data]))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
