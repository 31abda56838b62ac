"""The client for asyncio."""

from __future__ import annotations

import copy
from asyncio import sleep
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import grpc
import grpc.aio

from unmask import channel as channels
from unmask.calls import Divided, Paged, Resumed, Streamed, Unary, as_method
from unmask.errors import UnavailableError, from_rpc_error
from unmask.growth import GROW, AsyncGrowthHandle
from unmask.requests import cache, catalog, diagnosis, growth, trajectory
from unmask.tracing import calling
from unmask.v1 import growth_pb2

P = ParamSpec("P")
T = TypeVar("T")


class AsyncBaseClient:
    """Calls carried out on an event loop. `AsyncClient` gives them their names."""

    def __init__(
        self,
        address: str = channels.DEFAULT_ADDRESS,
        *,
        token: channels.Token = None,
        tls: channels.Tls = None,
        ca: channels.File = None,
        cert: channels.File = None,
        key: channels.File = None,
        timeout: float | None = 600.0,
    ) -> None:
        """Connect, lazily; to be called where an event loop runs. Arguments: see `Client`."""
        self.address = address
        self.timeout = timeout
        connection = channels.connection(address, token=token, tls=tls, ca=ca, cert=cert, key=key)
        self._metadata = connection.metadata
        self._channel: grpc.aio.Channel = (
            grpc.aio.secure_channel(connection.target, connection.credentials, connection.options)
            if connection.credentials
            else grpc.aio.insecure_channel(connection.target, connection.options)
        )

    @property
    def channel(self) -> grpc.aio.Channel:
        """The channel, for the generated stubs in `unmask.v1`."""
        return self._channel

    def with_timeout(self, timeout: float | None) -> Self:
        """The same client, on the same channel, with another timeout in seconds."""
        other = copy.copy(self)
        other.timeout = timeout
        return other

    async def wait_ready(self, timeout: float = 60.0) -> None:
        """Wait until the server says that it serves.

        Raises:
            UnmaskError: DEADLINE_EXCEEDED after `timeout` seconds; UNAVAILABLE if it is stopping.

        """
        check: Any = self._channel.unary_unary(channels.HEALTH_PATH)
        try:
            answer = await check(
                b"", timeout=timeout, metadata=self._metadata(), wait_for_ready=True
            )
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        channels.require_serving(answer, self.address)

    async def call(self, call: Unary[T]) -> T:
        """Carry out a call; raises `UnmaskError` if it fails."""
        response = await self._send(call.path, call.request, call.response)
        return call.pick(response)

    async def pages(self, call: Paged[T]) -> AsyncIterator[T]:
        """The items of all pages, fetched as they are needed."""
        request = copy.copy(call.request)
        while True:
            page = await self._send(call.path, request, call.response)
            for item in call.items(page):
                yield item
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def stream(
        self, call: Streamed[T], timeout: float | None = None
    ) -> AsyncGenerator[T, None]:
        """The answers as they come. Closing the iterator cancels the call."""
        method: Any = self._channel.unary_stream(
            call.path,
            request_serializer=type(call.request).SerializeToString,
            response_deserializer=call.response.FromString,
        )
        with calling(call.path, self._metadata()) as metadata:
            responses = method(call.request, timeout=timeout, metadata=metadata)
            try:
                async for response in responses:
                    yield call.pick(response)
            except grpc.RpcError as error:
                raise from_rpc_error(error) from error
            finally:
                responses.cancel()

    async def parts(
        self, call: Divided[T], timeout: float | None = None
    ) -> AsyncGenerator[T, None]:
        """The parts of an answer as they come; a stream that breaks is begun again, unnoticed."""
        resumed = Resumed(call, timeout)
        while True:
            try:
                async with aclosing(self.stream(call, resumed.begin())) as parts:
                    async for part in parts:
                        if resumed.is_new(part):
                            yield part
            except UnavailableError as error:
                pause = resumed.broke(error)
            else:
                return
            await sleep(pause)

    async def whole(self, call: Divided[T]) -> T:
        """All parts of an answer, put together."""
        whole: Any = call.response()
        async for part in self.parts(call, self.timeout):
            call.add(whole, part)
        return whole  # type: ignore[no-any-return]

    async def items(self, call: Divided[Any]) -> AsyncIterator[Any]:
        """The items of all parts, as they come. Closing the iterator cancels the call."""
        async with aclosing(self.parts(call)) as parts:
            async for part in parts:
                for item in call.items(part):
                    yield item

    async def _send(self, path: str, request: Any, response: Any) -> Any:
        method: Any = self._channel.unary_unary(
            path,
            request_serializer=type(request).SerializeToString,
            response_deserializer=response.FromString,
        )
        with calling(path, self._metadata()) as metadata:
            try:
                return await method(request, timeout=self.timeout, metadata=metadata)
            except grpc.RpcError as error:
                raise from_rpc_error(error) from error

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()


def _unary(
    build: Callable[P, Unary[T]],
) -> Callable[Concatenate[AsyncBaseClient, P], Awaitable[T]]:
    return as_method(build, AsyncBaseClient.call)


def _paged(
    build: Callable[P, Paged[T]],
) -> Callable[Concatenate[AsyncBaseClient, P], AsyncIterator[T]]:
    return as_method(build, AsyncBaseClient.pages)


def _streamed(
    build: Callable[P, Streamed[T]],
) -> Callable[Concatenate[AsyncBaseClient, P], AsyncIterator[T]]:
    return as_method(build, AsyncBaseClient.stream)


def _whole(
    build: Callable[P, Divided[T]],
) -> Callable[Concatenate[AsyncBaseClient, P], Awaitable[T]]:
    return as_method(build, AsyncBaseClient.whole)


def _items(
    build: Callable[P, Divided[Any]], name: str, summary: str
) -> Callable[Concatenate[AsyncBaseClient, P], AsyncIterator[Any]]:
    return as_method(build, AsyncBaseClient.items, name, summary)


def _started(
    build: Callable[P, Unary[growth_pb2.Growth]],
) -> Callable[Concatenate[AsyncClient, P], Awaitable[AsyncGrowthHandle]]:
    async def start(client: AsyncClient, call: Unary[growth_pb2.Growth]) -> AsyncGrowthHandle:
        return AsyncGrowthHandle(client, await client.call(call))

    return as_method(build, start, "grow", GROW)


class AsyncClient(AsyncBaseClient):
    """`Client` for asyncio: the same methods, to be awaited or iterated with `async for`.

    async with unmask.AsyncClient("localhost:50051") as client:
        policy = (await client.register_policy("/models/student")).policy
    """

    register_policy = _unary(catalog.register_policy)
    get_policy = _unary(catalog.get_policy)
    list_policies = _paged(catalog.list_policies)
    register_teacher = _unary(catalog.register_teacher)
    get_teacher = _unary(catalog.get_teacher)
    list_teachers = _paged(catalog.list_teachers)
    put_teacher_distributions = _unary(catalog.put_teacher_distributions)
    preview_prompt = _unary(catalog.preview_prompt)
    register_questions = _unary(catalog.register_questions)
    get_question = _unary(catalog.get_question)
    list_questions = _paged(catalog.list_questions)
    register_verifier = _unary(catalog.register_verifier)
    list_verifiers = _paged(catalog.list_verifiers)

    sample_trajectories = _whole(trajectory.sample_trajectories)
    iter_sampled_trajectories = _items(
        trajectory.sample_trajectories, "iter_sampled_trajectories", trajectory.ITER_SAMPLED
    )
    submit_trajectory = _unary(trajectory.submit_trajectory)
    get_trajectory = _unary(trajectory.get_trajectory)
    list_trajectories = _paged(trajectory.list_trajectories)

    get_node = _unary(diagnosis.get_node)
    ideal_gradient = _unary(diagnosis.ideal_gradient)
    alignment = _unary(diagnosis.alignment)
    trajectory_alignments = _streamed(diagnosis.trajectory_alignments)
    summarize = _unary(diagnosis.summarize)
    compare_groups = _unary(diagnosis.compare_groups)
    compare_objectives = _unary(diagnosis.compare_objectives)

    predict_growth = _unary(growth.predict_growth)
    start_growth = _unary(growth.start_growth)
    get_growth = _unary(growth.get_growth)
    list_growths = _paged(growth.list_growths)
    watch_growth = _streamed(growth.watch_growth)
    cancel_growth = _unary(growth.cancel_growth)
    pause_growth = _unary(growth.pause_growth)
    resume_growth = _unary(growth.resume_growth)
    extend_growth = _unary(growth.extend_growth)

    statistics = _unary(cache.statistics)
    regrade = _unary(cache.regrade)
    list_rollouts = _paged(cache.list_rollouts)
    put_outcomes = _unary(cache.put_outcomes)
    export_cache = _streamed(cache.export_cache)
    import_cache = _unary(cache.import_cache)
    import_generations = _unary(cache.import_generations)
    grow = _started(growth.start_growth)
