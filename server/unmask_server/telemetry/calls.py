"""The call that is being handled: what logs, errors and traces say of it.

It is known wherever its work goes: to what it awaits, to the tasks it starts, and to the threads of
`asyncio.to_thread`.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import count

REQUEST_ID = "x-request-id"
"""Metadata with a request's id: a client may choose one, and always gets it back."""

_PROCESS = secrets.token_hex(4)
_numbers = count(secrets.randbits(16))
"""Of the ids that this process makes, beginning anywhere."""

_SANE = re.compile(r"[A-Za-z0-9_.:=/+-]{1,128}")


@dataclass(slots=True)
class Call:
    """One call of a client."""

    id: str
    """Its request id."""
    reason: str = ""
    """Why it was refused or failed, in the word that the client is told."""
    cached: bool = False
    """Whether a kept answer was sent."""
    request: bytes = b""
    """What the client sent, so that it can be taken out of what is logged."""
    begun: float = 0.0
    """When its message was there, or else when it began; of `time.perf_counter()`."""
    sent: int = 0
    """Bytes of answers."""


_current: ContextVar[Call | None] = ContextVar("unmask_call", default=None)


def begin(metadata: Iterable[tuple[str, str | bytes]]) -> Call:
    """Let what follows in this task be part of a new call, by the client's metadata."""
    call = Call(_chosen(metadata) or f"{_PROCESS}{next(_numbers):08x}")
    _current.set(call)
    return call


def current() -> Call | None:
    """The call that this is part of; None: of none."""
    return _current.get()


def current_id() -> str:
    """Its request id; empty: it is part of none."""
    call = _current.get()
    return call.id if call is not None else ""


def _chosen(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """The id that the client chose, if that may stand in a log; empty if there is none."""
    for key, value in metadata:
        if key == REQUEST_ID and isinstance(value, str) and _SANE.fullmatch(value):
            return value
    return ""
