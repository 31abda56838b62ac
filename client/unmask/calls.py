"""Calls as values: what to send and what to make of the answer, before anything is sent.

The functions in `unmask.requests` build them from keyword arguments; `Client` and `AsyncClient`
differ only in how they carry them out, so that no request is written twice.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, ParamSpec, TypeVar

from google.protobuf.message import Message

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
