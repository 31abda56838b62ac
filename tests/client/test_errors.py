"""Errors that a person can read and a program can tell apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest
import unmask
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status
from unmask.v1 import cache_pb2, growth_pb2

from tests.client.scripted import ScriptedServer


def failing(code: int, message: str, *details: Any) -> Any:
    status = status_pb2.Status(code=code, message=message)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)

    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        context.abort_with_status(rpc_status.to_status(status))

    return answer


def test_a_refused_field_is_named(server: ScriptedServer, client: unmask.Client) -> None:
    violations = [
        error_details_pb2.BadRequest.FieldViolation(field="sampling.top_p", description="0 ≤ p"),
        error_details_pb2.BadRequest.FieldViolation(field="name", description="ü" * 300),
    ]
    server.answer(
        "RegisterPolicy",
        failing(
            code_pb2.INVALID_ARGUMENT,
            "sampling.top_p: 0 ≤ p",
            error_details_pb2.ErrorInfo(reason="BAD", domain="unmask.v1", metadata={"a": "b"}),
            error_details_pb2.RetryInfo(),
            error_details_pb2.BadRequest(field_violations=violations),
        ),
    )
    with pytest.raises(unmask.InvalidArgumentError) as caught:
        client.register_policy("x", top_p=0)
    error = caught.value
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.message == error.details() == "sampling.top_p: 0 ≤ p"
    assert error.reason == "BAD"
    assert [(v.field, v.description) for v in error.violations] == [
        ("sampling.top_p", "0 ≤ p"),
        ("name", "ü" * 300),
    ]
    assert str(error) == f"INVALID_ARGUMENT: sampling.top_p: 0 ≤ p; name: {'ü' * 300}"


def test_what_the_server_adds_for_programs_is_told(
    server: ScriptedServer, client: unmask.Client
) -> None:
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromMilliseconds(1500)
    told = {"policy": "pol-1", "teacher": "tea-ü"}
    server.answer(
        "GetPolicy",
        failing(
            code_pb2.RESOURCE_EXHAUSTED,
            "no more",
            error_details_pb2.ErrorInfo(reason="ENOUGH", domain="unmask.v1", metadata=told),
            retry,
            error_details_pb2.ResourceInfo(resource_type="policy", resource_name="x"),
            error_details_pb2.BadRequest(
                field_violations=[
                    error_details_pb2.BadRequest.FieldViolation(
                        field="policy", description="too long", reason="STRING_MAX_LEN"
                    )
                ]
            ),
        ),
    )
    with pytest.raises(unmask.ResourceExhaustedError) as caught:
        client.get_policy("x")
    error = caught.value
    assert (error.reason, error.metadata) == ("ENOUGH", told)
    assert error.retry_seconds == 1.5
    assert error.resource == ("policy", "x")
    assert [violation.reason for violation in error.violations] == ["STRING_MAX_LEN"]


def test_it_is_still_the_error_that_grpc_users_know(
    server: ScriptedServer, client: unmask.Client
) -> None:
    server.answer("GetPolicy", failing(code_pb2.NOT_FOUND, "no policy x"))
    with pytest.raises(grpc.RpcError) as caught:
        client.get_policy("x")
    assert isinstance(caught.value, unmask.NotFoundError)
    assert isinstance(caught.value.__cause__, grpc.RpcError)
    assert str(caught.value) == "NOT_FOUND: no policy x"


@pytest.mark.parametrize("junk", [b"\xff", b"\x1a\x7fabc", b"\x1a\x02\x0a\x09", b"\x0b", b""])
def test_details_that_make_no_sense_do_not_hide_the_message(
    server: ScriptedServer, client: unmask.Client, junk: bytes
) -> None:
    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        context.set_trailing_metadata((("grpc-status-details-bin", junk),))
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "another tokenizer")

    server.answer("GetStatistics", answer)
    with pytest.raises(unmask.FailedPreconditionError, match="another tokenizer") as caught:
        client.statistics()
    assert caught.value.violations == ()


def test_what_is_unavailable_for_a_moment_is_asked_again(
    server: ScriptedServer, client: unmask.Client
) -> None:
    tries = []

    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        tries.append(request)
        if len(tries) < 3:
            context.abort(grpc.StatusCode.UNAVAILABLE, "the model is loading")
        return cache_pb2.GetStatisticsResponse(trees=1)

    server.answer("GetStatistics", answer)
    assert client.statistics().trees == 1
    assert len(tries) == 3


def test_what_is_wrong_is_not_asked_again(server: ScriptedServer, client: unmask.Client) -> None:
    server.answer("GetStatistics", failing(code_pb2.INTERNAL, "oops"))
    with pytest.raises(unmask.UnmaskError, match="INTERNAL: oops"):
        client.statistics()
    assert len(server.requests("GetStatistics")) == 1


def test_nobody_there(tmp_path: Path) -> None:
    with (
        unmask.Client(f"unix:{tmp_path}/none.sock", timeout=0.2) as client,
        pytest.raises(unmask.UnmaskError) as caught,
    ):
        client.statistics()
    assert caught.value.code() in (
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    )


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        (grpc.StatusCode.INTERNAL, "INTERNAL: oh (request 4f1c)"),
        (grpc.StatusCode.NOT_FOUND, "NOT_FOUND: oh"),
    ],
)
def test_an_error_knows_its_request_and_shows_it_where_the_server_is_at_fault(
    server: ScriptedServer, client: unmask.Client, code: grpc.StatusCode, shown: str
) -> None:
    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        context.set_trailing_metadata((("x-request-id", "4f1c"),))
        context.abort(code, "oh")

    server.answer("GetStatistics", answer)
    with pytest.raises(unmask.UnmaskError) as caught:
        client.statistics()
    assert caught.value.request_id == "4f1c"
    assert str(caught.value) == shown


def test_an_answer_that_takes_too_long(server: ScriptedServer, client: unmask.Client) -> None:
    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        while context.is_active():
            pass
        return cache_pb2.GetStatisticsResponse()

    server.answer("GetStatistics", answer)
    with pytest.raises(unmask.DeadlineExceededError):
        client.with_timeout(0.05).statistics()
    assert client.timeout == 20


def test_a_broken_watch_is_taken_up_again_and_a_failed_growth_is_an_error(
    server: ScriptedServer, client: unmask.Client
) -> None:
    running = growth_pb2.Growth(
        id="gro-1", state=growth_pb2.GROWTH_STATE_RUNNING, rollouts_sampled=5
    )
    failed = growth_pb2.Growth(
        id="gro-1", state=growth_pb2.GROWTH_STATE_FAILED, error="out of memory"
    )
    streams = []

    def watch(request: Any, context: grpc.ServicerContext) -> Any:
        streams.append(request)
        yield growth_pb2.WatchGrowthResponse(growth=running)
        if len(streams) == 1:
            context.abort(grpc.StatusCode.UNAVAILABLE, "restarting")
        yield growth_pb2.WatchGrowthResponse(growth=failed)

    server.answer("StartGrowth", growth_pb2.StartGrowthResponse(growth=running))
    server.answer("WatchGrowth", watch)
    seen: list[int] = []
    handle = client.grow("trj-1", rollouts=1)
    with pytest.raises(unmask.GrowthFailedError, match="out of memory"):
        handle.wait(lambda growth: seen.append(growth.state))
    assert seen == [running.state, running.state, failed.state]
    assert handle.ended


def test_a_token_goes_with_every_call(server: ScriptedServer) -> None:
    server.answer("GetStatistics", cache_pb2.GetStatisticsResponse())
    with unmask.Client(server.address, token="secret") as client:
        client.statistics()
    assert server.metadata[-1]["authorization"] == "Bearer secret"


@pytest.mark.parametrize("address", ["example.org:50051", "10.0.0.1:1", "localhost.example.org:1"])
def test_a_token_does_not_cross_a_network_in_the_clear_unasked(address: str) -> None:
    with pytest.raises(ValueError, match=r"token: would be sent to .* in the clear"):
        unmask.Client(address, token="secret")
    unmask.Client(address, token="secret", tls=True).close()
    unmask.Client(address, token="secret", tls=False).close()
    for here in ("localhost:1", "127.0.0.1:1", "[::1]:1", "unix:/tmp/x.sock"):
        unmask.Client(here, token="secret").close()
