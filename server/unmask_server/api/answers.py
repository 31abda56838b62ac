"""Answers that are asked for again, from memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

import grpc

from unmask_server.nodes.versions import TreeVersions
from unmask_server.telemetry import calls
from unmask_server.telemetry.gauges import Answers

KEPT = {
    f"/unmask.v1.DiagnosisService/{name}": name
    for name in ("GetNode", "GetIdealGradient", "GetAlignment")
}
"""The methods whose answers are kept: by path, their names."""

Key = tuple[str, bytes]
"""The name of a method and a serialised request."""


class Message(Protocol):
    """A protobuf message."""

    def SerializeToString(self, *, deterministic: bool = ...) -> bytes:
        """Its bytes."""
        ...


@dataclass(frozen=True, slots=True)
class _Answer:
    tree_id: int
    version: int
    latest: bool
    data: bytes


class AnswerCache:
    """Answers as bytes, by request; an answer stands as long as its tree is at its version.

    What this server records is seen at once; what another server records within
    `versions.MAX_AGE_SECONDS`, or at once where `latest` is asked for.
    """

    def __init__(self, versions: TreeVersions, *, max_bytes: int) -> None:
        self._versions = versions
        self._max = max_bytes
        self._used = 0
        self._hits = self._misses = 0
        self._answers: OrderedDict[Key, _Answer] = OrderedDict()

    def at_hand(self, key: Key) -> bytes | None:
        """The answer, if it is known to stand without asking the database."""
        answer = self._answers.get(key)
        if (
            answer is None
            or answer.latest
            or self._versions.current(answer.tree_id) != answer.version
        ):
            return None
        self._answers.move_to_end(key)
        self._hit()
        return answer.data

    async def get(self, key: Key) -> bytes | None:
        """The answer, if it still stands."""
        answer = self._answers.get(key)
        if answer is None:
            self._misses += 1
            return None
        ask = self._versions.latest if answer.latest else self._versions.recent
        if await ask(answer.tree_id) != answer.version:
            # Another call may have put a newer one in its place meanwhile.
            if self._answers.get(key) is answer:
                self._drop(key)
            self._misses += 1
            return None
        if key in self._answers:
            self._answers.move_to_end(key)
        self._hit()
        return answer.data

    def put(
        self, key: Key, tree_id: int, version: int, data: bytes, *, latest: bool, since: float
    ) -> None:
        """Keep an answer.

        Args:
            key: what it answers.
            tree_id: the tree it was computed from.
            version: the tree's, as it was read.
            data: the answer.
            latest: whether the request asks for the newest counts.
            since: a time of `time.monotonic()` before the version was read.

        """
        self._versions.note(tree_id, version, since=since)
        self._drop(key)
        self._answers[key] = _Answer(tree_id, version, latest, data)
        self._used += _size(key, data)
        while self._used > self._max and self._answers:
            self._drop(next(iter(self._answers)))

    @property
    def counts(self) -> Answers:
        """What is kept, and how often it was of use."""
        return Answers(len(self._answers), self._used, self._hits, self._misses)

    def _hit(self) -> None:
        self._hits += 1
        if (call := calls.current()) is not None:
            call.cached = True

    def _drop(self, key: Key) -> None:
        if (answer := self._answers.pop(key, None)) is not None:
            self._used -= _size(key, answer.data)


class AnswerInterceptor(grpc.aio.ServerInterceptor):
    """Sends kept answers for the bytes of a request, before anything else looks at it.

    What is kept was found good when it was computed; all other calls take their usual way.
    Outermost, it remembers what the interceptors within it made of a method; these parse requests.
    """

    def __init__(self, answers: AnswerCache) -> None:
        self._answers = answers
        self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """The handler of the call's method."""
        method = handler_call_details.method
        if (known := self._handlers.get(method)) is not None:
            return known
        handler: Any = await continuation(handler_call_details)
        if handler is None:
            return None
        if method in KEPT:
            handler = grpc.unary_unary_rpc_method_handler(
                self._answering(KEPT[method], handler),
                response_serializer=handler.response_serializer,
            )
        self._handlers[method] = handler
        return handler  # type: ignore[no-any-return]

    def _answering(self, name: str, handler: Any) -> Callable[[bytes, Any], Awaitable[Any]]:
        at_hand, call = self._answers.at_hand, handler.unary_unary

        async def answering(data: bytes, context: Any) -> Any:
            if (kept := at_hand((name, data))) is not None:
                return kept
            return await call(data, context)

        return answering


def encode(message: Message | bytes) -> bytes:
    """The bytes of an answer: a message, or one that is encoded already."""
    return message if isinstance(message, bytes) else message.SerializeToString(deterministic=True)


def _size(key: Key, data: bytes) -> int:
    return len(key[1]) + len(data) + 300
