"""Calls as values: what to send and what to make of the answer, before anything is sent.

The functions in `unmask.requests` build them from keyword arguments; `Client` and `AsyncClient`
differ only in how they carry them out, so that no request is written twice.
"""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable, MutableSequence, Sequence
from dataclasses import dataclass
from typing import Any, Generic, ParamSpec, TypeVar

from google.protobuf.message import Message

from unmask.channel import FIRST_PAUSE, GROWTH, MOST_PAUSE, TRIES
from unmask.errors import UnavailableError

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Unary(Generic[T]):
    """One request, one answer."""

    path: str
    """`/unmask.v1.Service/Method`."""
    request: Message
    """What is sent."""
    response: type[Message]
    """What comes back."""
    pick: Callable[[Any], T]
    """From the response to what the caller gets."""


@dataclass(frozen=True, slots=True)
class Paged(Generic[T]):
    """A list that comes page by page, by `page_token` and `next_page_token`."""

    path: str
    request: Any
    response: type[Message]
    items: Callable[[Any], Sequence[T]]
    """From a page to its items."""


@dataclass(frozen=True, slots=True)
class Streamed(Generic[T]):
    """One request, many answers."""

    path: str
    request: Message
    response: type[Message]
    pick: Callable[[Any], T]
    """From one answer to what the caller gets."""


@dataclass(frozen=True, slots=True)
class Divided(Streamed[T]):
    """One answer that comes in parts: the same items in the same order whenever it is asked for."""

    items: Callable[[Any], MutableSequence[Any]]
    """From a part to its items."""
    add: Callable[[T, T], None]
    """Puts a part behind those that came before, the first argument."""


class Losses:
    """Streams that break, and are begun again.

    gRPC tries a call again until something has come; this goes on after that, by the same policy:
    so many streams one after the other without any progress, and pauses between them that grow.
    """

    def __init__(self) -> None:
        self._lost = 0

    def progress(self) -> None:
        """Something new has come."""
        self._lost = 0

    def broke(self, error: UnavailableError) -> float:
        """Take note of a loss. Returns the seconds to wait; what the server says goes before.

        Raises:
            UnavailableError: it is enough.

        """
        self._lost += 1
        if self._lost == TRIES:
            raise error
        return error.retry_seconds or min(MOST_PAUSE, FIRST_PAUSE * GROWTH ** (self._lost - 1))


class Resumed:
    """An answer in parts whose stream is begun again where it breaks: what has come, comes once."""

    def __init__(self, call: Divided[Any], timeout: float | None) -> None:
        """Begin now. `timeout` in seconds, for all streams together; None: for ever."""
        self._items = call.items
        self._ends = None if timeout is None else time.monotonic() + timeout
        self._come = self._at = 0
        self._losses = Losses()

    def begin(self) -> float | None:
        """Begin a stream. Returns the seconds that it may take."""
        self._at = 0
        return None if self._ends is None else max(0.0, self._ends - time.monotonic())

    def is_new(self, part: Any) -> bool:
        """Take out of a part what has come before; whether there is more in it."""
        items = self._items(part)
        known = min(max(self._come - self._at, 0), len(items))
        self._at += len(items)
        self._come = max(self._come, self._at)
        del items[:known]
        if items:
            self._losses.progress()
        return bool(items)

    def broke(self, error: UnavailableError) -> float:
        """Take note that a stream broke. Returns the seconds to wait before the next one.

        Raises:
            UnavailableError: it is enough, or the time would be over.

        """
        pause = self._losses.broke(error)
        if self._ends is not None and time.monotonic() + pause >= self._ends:
            raise error
        return pause


def path(service: str, method: str) -> str:
    """The path of a method of the contract."""
    return f"/unmask.v1.{service}/{method}"


def itself(response: T) -> T:
    """For responses that are handed on whole."""
    return response


def as_method(
    build: Callable[..., Any], run: Callable[..., Any], name: str = "", summary: str = ""
) -> Callable[..., Any]:
    """`run(self, build(...))` as a method with the name, signature and documentation of `build`.

    `name` and `summary`, the first line of the documentation, may be others.
    """

    @functools.wraps(build)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return run(self, build(*args, **kwargs))

    if name:
        method.__name__ = method.__qualname__ = name
    if summary and build.__doc__:
        method.__doc__ = summary + build.__doc__[build.__doc__.index("\n") :]
    signature = inspect.signature(build)
    self_parameter = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    method.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[self_parameter, *signature.parameters.values()],
        return_annotation=inspect.Signature.empty,
    )
    return method
