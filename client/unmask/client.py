"""The client for ordinary, blocking programs."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Generator, Iterator
from time import sleep
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import grpc

from unmask import channel as channels
from unmask.calls import Divided, Paged, Resumed, Streamed, Unary, as_method
from unmask.errors import UnavailableError, from_rpc_error
from unmask.growth import GROW, GrowthHandle
from unmask.requests import cache, catalog, diagnosis, growth, trajectory
from unmask.tracing import calling
from unmask.v1 import growth_pb2

P = ParamSpec("P")
T = TypeVar("T")


class BaseClient:
    """Calls carried out one after the other. `Client` gives them their names."""

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
        """Connect, lazily: no server need be there yet.

        Args:
            address: `host:port`, or `unix:PATH` for a Unix socket.
            token: bearer token, or what gives it; goes with every call. None: $UNMASK_TOKEN, or
                what the file $UNMASK_TOKEN_FILE holds when the call is made.
            tls: True for TLS, by the usual certificate authorities if `ca` names no others, or
                credentials of gRPC's; False: in the clear, whatever the environment says; None:
                TLS if any of the following is given.
            ca: a PEM file of certificate authorities; None: $UNMASK_TLS_CA.
            cert: a PEM file with the client's own certificate; None: $UNMASK_CLIENT_CERT.
            key: a PEM file with its private key; None: $UNMASK_CLIENT_KEY.
            timeout: seconds that an answer may take, retries included; None: for ever. Streams have
                no limit.

        Raises:
            ValueError: an empty address, arguments that do not go together, or a token that would
                cross a network in the clear.
            OSError: a file cannot be read.

        """
        self.address = address
        self.timeout = timeout
        connection = channels.connection(address, token=token, tls=tls, ca=ca, cert=cert, key=key)
        self._metadata = connection.metadata
        self._exit = contextlib.ExitStack()
        self._channel: grpc.Channel = (
            grpc.secure_channel(connection.target, connection.credentials, connection.options)
            if connection.credentials
            else grpc.insecure_channel(connection.target, connection.options)
        )
        self._exit.callback(self._channel.close)

    @property
    def channel(self) -> grpc.Channel:
        """The channel, for the generated stubs in `unmask.v1`."""
        return self._channel

    def with_timeout(self, timeout: float | None) -> Self:
        """The same client, on the same channel, with another timeout in seconds."""
        other = copy.copy(self)
        other.timeout = timeout
        other._exit = contextlib.ExitStack()
        return other

    def wait_ready(self, timeout: float = 60.0) -> None:
        """Wait until the server says that it serves.

        Raises:
            UnmaskError: DEADLINE_EXCEEDED after `timeout` seconds; UNAVAILABLE if it is stopping.

        """
        check: Any = self._channel.unary_unary(channels.HEALTH_PATH)
        try:
            answer = check(b"", timeout=timeout, metadata=self._metadata(), wait_for_ready=True)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        channels.require_serving(answer, self.address)

    def call(self, call: Unary[T]) -> T:
        """Carry out a call; raises `UnmaskError` if it fails."""
        response = self._send(call.path, call.request, call.response)
        return call.pick(response)

    def pages(self, call: Paged[T]) -> Iterator[T]:
        """The items of all pages, fetched as they are needed."""
        request = copy.copy(call.request)
        while True:
            page = self._send(call.path, request, call.response)
            yield from call.items(page)
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def stream(self, call: Streamed[T], timeout: float | None = None) -> Generator[T, None, None]:
        """The answers as they come. Leaving the loop cancels the call."""
        method = self._channel.unary_stream(
            call.path,
            request_serializer=type(call.request).SerializeToString,
            response_deserializer=call.response.FromString,
        )
        with calling(call.path, self._metadata()) as metadata:
            responses = method(call.request, timeout=timeout, metadata=metadata)
            try:
                for response in responses:
                    yield call.pick(response)
            except grpc.RpcError as error:
                raise from_rpc_error(error) from error
            finally:
                responses.cancel()

    def parts(self, call: Divided[T], timeout: float | None = None) -> Generator[T, None, None]:
        """The parts of an answer as they come; a stream that breaks is begun again, unnoticed."""
        resumed = Resumed(call, timeout)
        while True:
            try:
                with contextlib.closing(self.stream(call, resumed.begin())) as parts:
                    for part in parts:
                        if resumed.is_new(part):
                            yield part
            except UnavailableError as error:
                pause = resumed.broke(error)
            else:
                return
            sleep(pause)

    def whole(self, call: Divided[T]) -> T:
        """All parts of an answer, put together."""
        whole: Any = call.response()
        for part in self.parts(call, self.timeout):
            call.add(whole, part)
        return whole  # type: ignore[no-any-return]

    def items(self, call: Divided[Any]) -> Iterator[Any]:
        """The items of all parts, as they come. Leaving the loop cancels the call."""
        with contextlib.closing(self.parts(call)) as parts:
            for part in parts:
                yield from call.items(part)

    def _send(self, path: str, request: Any, response: Any) -> Any:
        method = self._channel.unary_unary(
            path,
            request_serializer=type(request).SerializeToString,
            response_deserializer=response.FromString,
        )
        with calling(path, self._metadata()) as metadata:
            try:
                return method(request, timeout=self.timeout, metadata=metadata)
            except grpc.RpcError as error:
                raise from_rpc_error(error) from error

    def on_close(self, callback: Callable[[], object]) -> None:
        """Call `callback` when the client has been closed."""
        # Callbacks run last in, first out: the channel is to be closed before.
        rest = self._exit.pop_all()
        self._exit.callback(callback)
        self._exit.push(rest)

    def close(self) -> None:
        """Close the channel, then the embedded server that this client started, if it did."""
        self._exit.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _unary(build: Callable[P, Unary[T]]) -> Callable[Concatenate[BaseClient, P], T]:
    return as_method(build, BaseClient.call)


def _paged(build: Callable[P, Paged[T]]) -> Callable[Concatenate[BaseClient, P], Iterator[T]]:
    return as_method(build, BaseClient.pages)


def _streamed(build: Callable[P, Streamed[T]]) -> Callable[Concatenate[BaseClient, P], Iterator[T]]:
    return as_method(build, BaseClient.stream)


def _whole(build: Callable[P, Divided[T]]) -> Callable[Concatenate[BaseClient, P], T]:
    return as_method(build, BaseClient.whole)


def _items(
    build: Callable[P, Divided[Any]], name: str, summary: str
) -> Callable[Concatenate[BaseClient, P], Iterator[Any]]:
    return as_method(build, BaseClient.items, name, summary)


def _started(
    build: Callable[P, Unary[growth_pb2.Growth]],
) -> Callable[Concatenate[Client, P], GrowthHandle]:
    def start(client: Client, call: Unary[growth_pb2.Growth]) -> GrowthHandle:
        return GrowthHandle(client, client.call(call))

    return as_method(build, start, "grow", GROW)


class Client(BaseClient):
    """A connection to an Unmask server; a context manager; safe to use from several threads.

    Keyword arguments go in, messages of the contract (`unmask.v1`) come out: a response with one
    field gives that field, a response with several gives itself. Wherever an argument names a
    policy, a teacher, a question or a trajectory it may be the id, the name or the message.

        with unmask.Client("localhost:50051") as client:
            policy = client.register_policy("/models/student", temperature=0.7).policy
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
