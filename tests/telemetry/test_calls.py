"""Every call has a request id, a line in the log, and numbers in the metrics."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from unmask.v1 import catalog_pb2, diagnosis_pb2, growth_pb2, trajectory_pb2

from tests.collected import collected
from tests.e2e.test_main_job import at, growth_of, prefix
from tests.telemetry.conftest import Told, eventually

LIST = catalog_pb2.ListPoliciesRequest()
Metadata = list[tuple[str, Any]]


async def ask(call: Any) -> dict[str, Any]:
    await call
    return dict(await call.trailing_metadata())


async def refused(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def test_a_clients_request_id_comes_back_and_is_logged(told: Told) -> None:
    metadata = [("x-request-id", "notebook-17:3"), ("unmask-client", "ann")]
    answer = await ask(told.stubs.catalog.ListPolicies(LIST, metadata=metadata))
    assert answer["x-request-id"] == "notebook-17:3"
    line = await told.line(request_id="notebook-17:3", event="call")
    assert line["method"] == "unmask.v1.CatalogService/ListPolicies"
    assert line["code"] == "OK"
    assert line["client"] == "ann"
    assert line["peer"] == "unix"
    assert line["level"] == "info"
    assert line["ms"] > 0
    assert line["received"] == 0
    assert line["sent"] > 0
    assert line["cached"] is False


@pytest.mark.parametrize("given", ["", " ", "a b", "x" * 129, 'a"b', "ä"])
async def test_an_id_that_may_not_stand_in_a_log_is_replaced(told: Told, given: str) -> None:
    key = "x-request-id" if given.isascii() else "x-request-id-bin"
    value = given if given.isascii() else given.encode()
    metadata: Metadata = [(key, value)]
    answer = await ask(told.stubs.catalog.ListPolicies(LIST, metadata=metadata))
    assert len(answer["x-request-id"]) == 16
    assert int(answer["x-request-id"], 16) >= 0


async def test_calls_without_an_id_get_one_each(told: Told) -> None:
    ids = {(await ask(told.stubs.catalog.ListPolicies(LIST)))["x-request-id"] for _ in range(3)}
    assert len(ids) == 3


async def test_an_error_carries_the_request_id_in_its_details(told: Told) -> None:
    request = catalog_pb2.GetPolicyRequest(policy="nobody")
    metadata = [("x-request-id", "quote-me")]
    error = await refused(told.stubs.catalog.GetPolicy(request, metadata=metadata))
    trailing = dict(error.trailing_metadata())
    assert trailing["x-request-id"] == "quote-me"
    status = status_pb2.Status.FromString(trailing["grpc-status-details-bin"])
    info, why = error_details_pb2.RequestInfo(), error_details_pb2.ErrorInfo()
    assert [info.request_id for detail in status.details if detail.Unpack(info)] == ["quote-me"]
    assert status.message == error.details()
    line = await told.line(request_id="quote-me", event="call")
    assert line["code"] == "NOT_FOUND"
    assert [line["reason"] for detail in status.details if detail.Unpack(why)] == [why.reason]
    assert told.value("unmask_errors_total", reason=why.reason) >= 1


async def test_an_answer_from_memory_is_counted_and_has_an_id(told: Told) -> None:
    sampled = await collected(told.stubs.trajectory.SampleTrajectories(sampling_of_one()))
    request = diagnosis_pb2.GetNodeRequest(node=at(sampled.trajectories[0].id, 0))
    hits = told.value("unmask_answers_total", result="hit")
    misses = told.value("unmask_answers_total", result="miss")
    for name in ("computed", "kept"):
        call = told.stubs.diagnosis.GetNode(request, metadata=[("x-request-id", name)])
        assert (await ask(call))["x-request-id"] == name
    assert (await told.line(request_id="computed", event="call"))["cached"] is False
    assert (await told.line(request_id="kept", event="call"))["cached"] is True
    assert told.value("unmask_answers_total", result="hit") == hits + 1
    assert told.value("unmask_answers_total", result="miss") == misses + 1
    assert told.value("unmask_answer_cache_entries") >= 1
    assert told.value("unmask_answer_cache_bytes") > 0


def sampling_of_one() -> trajectory_pb2.SampleTrajectoriesRequest:
    return trajectory_pb2.SampleTrajectoriesRequest(
        policy="student", questions=["one"], count=1, seed=7
    )


async def test_a_stream_is_one_call(told: Told) -> None:
    sampled = await collected(told.stubs.trajectory.SampleTrajectories(sampling_of_one()))
    request = diagnosis_pb2.StreamTrajectoryAlignmentsRequest(
        trajectory=sampled.trajectories[0].id, teachers=["teacher"]
    )
    stream = told.stubs.diagnosis.StreamTrajectoryAlignments(
        request, metadata=[("x-request-id", "stream")]
    )
    sizes = [message.ByteSize() async for message in stream]
    assert dict(await stream.trailing_metadata())["x-request-id"] == "stream"
    line = await told.line(request_id="stream", event="call")
    assert line["sent"] == sum(sizes)
    assert line["received"] == request.ByteSize()
    labels = {"grpc_method": "StreamTrajectoryAlignments", "grpc_type": "server_stream"}
    assert told.value("grpc_server_handled_total", grpc_code="OK", **labels) >= 1


async def test_a_stream_that_the_client_leaves_is_cancelled(told: Told) -> None:
    growth = await start(told, "left", rollouts=50_000)
    watch = told.stubs.growth.WatchGrowth(
        growth_pb2.WatchGrowthRequest(growth=growth.id), metadata=[("x-request-id", "leaving")]
    )
    await watch.read()
    watch.cancel()
    line = await told.line(request_id="leaving", event="call")
    assert line["code"] == "CANCELLED"
    await told.stubs.growth.CancelGrowth(growth_pb2.CancelGrowthRequest(growth=growth.id))
    await eventually(lambda: told.value("unmask_rpcs_in_flight") == 0)


async def start(told: Told, name: str, *, rollouts: int, **how: Any) -> growth_pb2.Growth:
    request = growth_of(
        growth_pb2.GrowthTarget(node=prefix()),
        request_id=name,
        rollouts_per_node=0,
        budget=growth_pb2.Budget(rollouts=rollouts),
        allocation=growth_pb2.ALLOCATION_POLICY,
    )
    return (await told.stubs.growth.StartGrowth(request, **how)).growth


async def test_a_growths_lines_name_it_and_the_call_that_started_it(told: Told) -> None:
    growth = await start(told, "logged", rollouts=64, metadata=[("x-request-id", "grow-7")])
    watch = growth_pb2.WatchGrowthRequest(growth=growth.id)
    async for progress in told.stubs.growth.WatchGrowth(watch):
        last = progress.growth
    assert last.rollouts_sampled == 64
    ended = await told.line(event="growth ended", growth=growth.id)
    sampled = await told.line(event="growth sampled", growth=growth.id)
    assert ended["request_id"] == sampled["request_id"] == "grow-7"
    assert told.value("unmask_growth_rollouts_total", source="sampled") >= 64
    assert told.value("unmask_growths_ended_total", state="succeeded") >= 1
    assert told.value("unmask_rollouts_stored_total") >= 64
    assert told.value("unmask_growth_tokens_total") > 64
    work = told.value("unmask_growth_work_seconds_total")
    assert work >= told.value("unmask_growth_idle_seconds_total") > 0
    assert told.value("unmask_growths_running") == 0


async def test_health_checks_are_counted_but_not_logged(told: Told) -> None:
    health = health_pb2_grpc.HealthStub(told.stubs.channel)
    metadata = [("x-request-id", "healthy")]
    assert (await ask(health.Check(health_pb2.HealthCheckRequest(), metadata=metadata)))[
        "x-request-id"
    ] == "healthy"
    labels = {"grpc_service": "grpc.health.v1.Health", "grpc_method": "Check"}
    assert told.value("grpc_server_handled_total", grpc_code="OK", **labels) >= 1
    assert told.lines(request_id="healthy") == []


async def test_methods_that_there_are_not_share_one_label(told: Told) -> None:
    for name in ("/unmask.v1.Invented/One", "/unmask.v1.Invented/Two"):
        call: Any = told.stubs.channel.unary_unary(name)(b"")
        assert (await refused(call)).code() is grpc.StatusCode.UNIMPLEMENTED
    labels = {"grpc_service": "unknown", "grpc_code": "Unimplemented"}
    assert told.value("grpc_server_handled_total", **labels) >= 2
    assert "Invented" not in told.scraped()


async def test_metrics_tell_of_engine_store_and_process(told: Told) -> None:
    sampled = await collected(told.stubs.trajectory.SampleTrajectories(sampling_of_one()))
    request = diagnosis_pb2.GetNodeRequest(node=at(sampled.trajectories[0].id, 0))
    await told.stubs.diagnosis.GetNode(request)
    assert told.value("unmask_engine_tokens_total", engine="transformers") > 0
    assert told.value("unmask_engines") >= 1
    assert told.value("unmask_distributions_total", source="engine") > 0
    assert told.value("unmask_insert_seconds_count") >= 1
    assert told.value("unmask_database_connection_wait_seconds_count") > 1
    assert told.value("unmask_database_connections_limit") == 32
    assert told.value("process_resident_memory_bytes") > 1e7
    assert told.value("process_open_fds") > 5
    assert told.value("unmask_build_info", database="sqlite") == 1
    await eventually(lambda: "unmask_trees " in told.scraped())


async def test_no_label_is_an_id_or_a_name(told: Told) -> None:
    policies = await told.stubs.catalog.ListPolicies(LIST)
    ids = {policy.id for policy in policies.policies} | {"student", "teacher", "one", "logged"}
    for _, labels, _ in told.samples():
        assert not ids & set(labels.values())
