"""Calls over a real socket: limits of a client, deadlines of the server, and its stop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_status import rpc_status
from unmask.v1 import growth_pb2, growth_pb2_grpc, trajectory_pb2, trajectory_pb2_grpc
from unmask_server.api import guard as guard_module
from unmask_server.api.callers import authenticated
from unmask_server.api.errors import ErrorInterceptor
from unmask_server.api.guard import CallGuard, Kind
from unmask_server.api.observing import ObservingInterceptor
from unmask_server.config import Settings


class Growths(growth_pb2_grpc.GrowthServiceServicer):
    """Calls that wait until they are told to go on."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.begun = asyncio.Semaphore(0)
        self.ended = asyncio.Semaphore(0)

    async def GetGrowth(self, request: Any, context: Any) -> growth_pb2.GetGrowthResponse:
        await self._wait()
        return growth_pb2.GetGrowthResponse()

    async def WatchGrowth(
        self, request: Any, context: Any
    ) -> AsyncIterator[growth_pb2.WatchGrowthResponse]:
        yield growth_pb2.WatchGrowthResponse()
        await self._wait()

    async def _wait(self) -> None:
        self.begun.release()
        try:
            await self.go_on.wait()
        finally:
            self.ended.release()


class Trajectories(trajectory_pb2_grpc.TrajectoryServiceServicer):
    async def GetTrajectory(self, request: Any, context: Any) -> Any:
        return trajectory_pb2.GetTrajectoryResponse()


class Service:
    """A server and a client of it."""

    def __init__(self, guard: CallGuard, growths: Growths, channel: grpc.aio.Channel) -> None:
        self.guard = guard
        self.growths = growths
        self.channel = channel
        self.stub = growth_pb2_grpc.GrowthServiceStub(channel)
        self.trajectories = trajectory_pb2_grpc.TrajectoryServiceStub(channel)

    def get(self, **options: Any) -> Any:
        return self.stub.GetGrowth(growth_pb2.GetGrowthRequest(), **options)

    def watch(self) -> Any:
        return self.stub.WatchGrowth(growth_pb2.WatchGrowthRequest())


class Authenticates(grpc.aio.ServerInterceptor):
    """Believes what a call says."""

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        authenticated.set(dict(details.invocation_metadata).get("principal", ""))
        return await continuation(details)


@asynccontextmanager
async def serving(
    folder: Path, growths: Growths | None = None, **settings: Any
) -> AsyncIterator[Service]:
    guard = CallGuard(Settings(**settings))
    observing = ObservingInterceptor("off", descriptor_pool.Default(), (), 2**30)
    server = grpc.aio.server(interceptors=[observing, Authenticates(), guard, ErrorInterceptor()])
    growths = growths or Growths()
    growth_pb2_grpc.add_GrowthServiceServicer_to_server(growths, server)
    trajectory_pb2_grpc.add_TrajectoryServiceServicer_to_server(Trajectories(), server)
    health_pb2_grpc.add_HealthServicer_to_server(health_aio.HealthServicer(), server)
    server.add_insecure_port(f"unix:{folder}/socket")
    await server.start()
    guard.start()
    try:
        options = [("grpc.max_receive_message_length", -1)]
        async with grpc.aio.insecure_channel(f"unix:{folder}/socket", options) as channel:
            yield Service(guard, growths, channel)
    finally:
        growths.go_on.set()
        await server.stop(None)
        await guard.drain(0.0)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard_module, "SWEEP_SECONDS", 0.01)


async def refused(call: Any) -> tuple[grpc.StatusCode, str, float | None]:
    """Code, reason and seconds to wait of a call that fails."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await _end_of(call)
    status = rpc_status.from_call(caught.value)
    assert status is not None, caught.value
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    assert any(detail.Unpack(info) for detail in status.details)
    waits = any(detail.Unpack(retry) for detail in status.details)
    seconds = retry.retry_delay.ToNanoseconds() / 1e9 if waits else None
    return caught.value.code(), info.reason, seconds


async def _end_of(call: Any) -> None:
    if not hasattr(call, "read"):
        await call
        return
    while await call.read() is not grpc.aio.EOF:
        pass


async def test_a_client_has_so_many_calls_and_streams_at_once(tmp_path: Path) -> None:
    async with serving(tmp_path, client_calls=2, client_streams=1) as service:
        running = [service.get(), service.get()]
        watch = service.watch()
        await watch.read()
        for _ in range(3):
            await service.growths.begun.acquire()
        for call in (service.get(), service.watch()):
            code, reason, seconds = await refused(call)
            assert (code, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_CALLS")
            assert seconds
        # Another one, that was authenticated, is not held to it; nor is who looks after the server.
        other = service.get(metadata=(("principal", "ann"),))
        await service.growths.begun.acquire()
        health = health_pb2_grpc.HealthStub(service.channel)
        assert (await health.Check(health_pb2.HealthCheckRequest())).status
        service.growths.go_on.set()
        await asyncio.gather(*running, other)
        await service.get()
        watch.cancel()


async def test_a_client_asks_so_often(tmp_path: Path) -> None:
    async with serving(tmp_path, client_rate=0.001, client_burst=2) as service:
        service.growths.go_on.set()
        await service.get()
        await service.trajectories.GetTrajectory(trajectory_pb2.GetTrajectoryRequest())
        code, reason, seconds = await refused(service.get())
        assert (code, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED")
        assert seconds is not None
        assert 900 < seconds <= 1000


async def test_a_call_beyond_a_limit_is_refused_before_its_message_is_read(
    tmp_path: Path,
) -> None:
    # More than the server takes: that would be said of a message that is read.
    large = bytes(4 * 2**20 + 1)
    async with serving(tmp_path, client_calls=1, client_streams=1) as service:
        running, watch = service.get(), service.watch()
        for _ in range(2):
            await service.growths.begun.acquire()
        get = service.channel.unary_unary("/unmask.v1.GrowthService/GetGrowth")
        see = service.channel.unary_stream("/unmask.v1.GrowthService/WatchGrowth")
        for call in (get(large), see(large)):
            assert (await refused(call))[1] == "TOO_MANY_CALLS"
        service.growths.go_on.set()
        await running
        watch.cancel()
        with pytest.raises(grpc.aio.AioRpcError, match="larger than max"):
            await get(large)
        await service.get()
    async with serving(tmp_path, client_rate=0.001, client_burst=1) as service:
        service.growths.go_on.set()
        await service.get()
        get = service.channel.unary_unary("/unmask.v1.GrowthService/GetGrowth")
        assert (await refused(get(large)))[1] == "RATE_LIMITED"


async def test_a_message_on_its_way_counts_and_has_a_deadline(tmp_path: Path) -> None:
    async with serving(tmp_path, client_calls=1, deadline_seconds=0.5) as service:
        slow: Any = service.channel.stream_unary("/unmask.v1.GrowthService/GetGrowth")()
        slow_ends = asyncio.create_task(refused(slow))
        async with asyncio.timeout(60):
            while not service.guard.running:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert (await refused(service.get()))[1] == "TOO_MANY_CALLS"
        assert (await slow_ends)[1] == "CALL_TOO_LONG"
        service.growths.go_on.set()
        await service.get()


async def test_a_call_without_a_message_is_told_so(tmp_path: Path) -> None:
    async with serving(tmp_path) as service:
        for path in ("unmask.v1.GrowthService/GetGrowth", "grpc.health.v1.Health/Check"):
            code, reason, _ = await refused(service.channel.stream_unary(f"/{path}")(iter(())))
            assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST")
        assert not service.guard.running


async def test_a_client_watches_the_health_so_often_at_once(tmp_path: Path) -> None:
    async with serving(tmp_path, client_calls=1, client_streams=1) as service:
        health = health_pb2_grpc.HealthStub(service.channel)
        watch = health.Watch(health_pb2.HealthCheckRequest())
        await watch.read()
        code, reason, seconds = await refused(health.Watch(health_pb2.HealthCheckRequest()))
        assert (code, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_CALLS")
        assert seconds
        # What it has of this API's own streams is another matter, and so are checks.
        growth = service.watch()
        await growth.read()
        assert (await health.Check(health_pb2.HealthCheckRequest())).status
        # Another client is not held to it.
        other = health.Watch(health_pb2.HealthCheckRequest(), metadata=(("principal", "ann"),))
        await other.read()
        for call in (watch, growth, other):
            call.cancel()
        async with asyncio.timeout(60):
            while True:
                again = health.Watch(health_pb2.HealthCheckRequest())
                try:
                    await again.read()
                except grpc.aio.AioRpcError:
                    continue
                break
        again.cancel()


async def test_a_call_without_a_deadline_has_one(tmp_path: Path) -> None:
    async with serving(tmp_path, deadline_seconds=0.05, deadline_stream_seconds=0.05) as service:
        for call in (service.get(), service.get(timeout=1000.0), service.watch()):
            code, reason, _ = await refused(call)
            assert (code, reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "CALL_TOO_LONG")
            await service.growths.ended.acquire()


async def test_work_of_a_client_that_has_gone_stops(tmp_path: Path) -> None:
    async with serving(tmp_path) as service:
        given_up, left = service.get(), service.watch()
        await left.read()
        for _ in range(2):
            await service.growths.begun.acquire()
        given_up.cancel()
        left.cancel()
        for _ in range(2):
            await service.growths.ended.acquire()
        seconds = 0.05
        while service.growths.begun.locked():  # on a slow machine it may expire on its way
            with pytest.raises(grpc.aio.AioRpcError):
                await service.get(timeout=seconds)
            seconds *= 2.0
        await service.growths.ended.acquire()


async def test_a_stop_ends_what_has_no_end_and_waits_for_the_rest(tmp_path: Path) -> None:
    async with serving(tmp_path) as service:
        call, watch = service.get(), service.watch()
        await service.growths.begun.acquire()
        await watch.read()
        await service.growths.begun.acquire()
        draining = asyncio.create_task(service.guard.drain(1000.0))
        code, reason, seconds = await refused(watch)
        assert (code, reason) == (grpc.StatusCode.UNAVAILABLE, "SERVER_STOPPING")
        assert seconds
        assert (await refused(service.get()))[1] == "SERVER_STOPPING"
        assert not draining.done()
        service.growths.go_on.set()
        await call
        await draining


class ToldError(Exception):
    """What a context's abort raises."""


class Written:
    """A call whose answers are never taken."""

    async def read(self) -> bytes:
        return b"asked"

    def peer(self) -> str:
        return "unix:"

    def auth_context(self) -> dict[str, Any]:
        return {}

    def invocation_metadata(self) -> tuple[()]:
        return ()

    async def abort_with_status(self, status: Any) -> None:
        raise ToldError(rpc_status.from_call(_Ended(status)))


class _Ended:
    """A status as a client sees it."""

    def __init__(self, status: Any) -> None:
        self.code = lambda: status.code
        self.details = lambda: status.details
        self.trailing_metadata = lambda: status.trailing_metadata


class NeverTaken(Written):
    """One whose client does not take the word of its end either."""

    async def abort_with_status(self, status: Any) -> None:
        await asyncio.Event().wait()


async def stopped_while_writing(context: Written) -> None:
    """Stop a server that writes an answer; raises what the call does."""
    guard = CallGuard(Settings())
    writing = asyncio.Event()

    async def answers(request: Any, context: Any) -> AsyncIterator[int]:
        while True:
            yield 1

    async def write() -> None:
        async with aclosing(guard._stream(answers, Kind.STREAM, True)(None, context)) as some:
            async for _ in some:
                writing.set()
                await asyncio.Event().wait()

    task = asyncio.create_task(write())
    await asyncio.wait_for(writing.wait(), 30)
    await asyncio.wait_for(guard.drain(30.0), 30)
    assert not guard.running
    await task


async def test_a_stop_is_told_also_where_an_answer_is_being_written() -> None:
    with pytest.raises(ToldError, match="SERVER_STOPPING"):
        await stopped_while_writing(Written())


class LargeGrowths(Growths):
    """Answers that no window of a connection holds."""

    async def WatchGrowth(
        self, request: Any, context: Any
    ) -> AsyncIterator[growth_pb2.WatchGrowthResponse]:
        self.begun.release()
        yield growth_pb2.WatchGrowthResponse(growth=growth_pb2.Growth(id="x" * (16 * 2**20)))
        await self.go_on.wait()


async def test_a_stop_is_told_while_the_first_answer_is_on_its_way(tmp_path: Path) -> None:
    async with serving(tmp_path, LargeGrowths()) as service:
        call = service.watch()
        # Nothing of it has been taken yet, not even its headers.
        await service.growths.begun.acquire()
        stop = asyncio.create_task(service.guard.drain(30.0))
        async with asyncio.timeout(30):
            code, reason, _ = await refused(call)
            await stop
        assert (code, reason) == (grpc.StatusCode.UNAVAILABLE, "SERVER_STOPPING")


async def test_a_client_that_takes_no_answers_holds_up_no_stop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(guard_module, "TELL_SECONDS", 0.01)
    with pytest.raises(asyncio.CancelledError):
        await stopped_while_writing(NeverTaken())


async def test_a_health_check_without_a_message_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard_module, "OPEN_SECONDS", 0.05)
    async with serving(tmp_path) as service:
        call = service.channel.stream_unary("/grpc.health.v1.Health/Check")()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_after_the_grace_calls_are_told(tmp_path: Path) -> None:
    async with serving(tmp_path) as service:
        call = service.get()
        await service.growths.begun.acquire()
        await service.guard.drain(0.05)
        code, reason, seconds = await refused(call)
        assert (code, reason) == (grpc.StatusCode.UNAVAILABLE, "SERVER_STOPPING")
        assert seconds
        await service.growths.ended.acquire()


async def test_what_is_missing_in_a_method_of_ours_is_a_fault(tmp_path: Path) -> None:
    async with serving(tmp_path) as service:
        code, reason, _ = await refused(service.stub.ListGrowths(growth_pb2.ListGrowthsRequest()))
        assert (code, reason) == (grpc.StatusCode.INTERNAL, "UNFORESEEN")


async def test_the_last_call_may_end_as_the_grace_does() -> None:
    guard = CallGuard(Settings())
    # Nothing runs any more, and nobody who waits has been told yet.
    guard._idle.clear()
    await guard.drain(0.0)


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        ("/unmask.v1.CatalogService/GetPolicy", Kind.QUICK),
        ("/unmask.v1.GrowthService/PauseGrowth", Kind.QUICK),
        ("/unmask.v1.DiagnosisService/GetAlignment", Kind.WORK),
        ("/unmask.v1.TrajectoryService/SubmitTrajectory", Kind.WORK),
    ],
)
def test_calls_that_may_wait_for_a_model_get_more_time(method: str, kind: Kind) -> None:
    assert Kind.of(method, is_stream=False) is kind
    assert Kind.of(method, is_stream=True) is Kind.STREAM
