"""Traces: spans of calls, of what they do, and of SQL. Off, and free, unless OTEL_… asks for them.

Whoever does the work writes `with tracing.span("tree.look_up", positions=3):`. OpenTelemetry is
imported by `telemetry.otel`, and that only when `start` finds that somebody wants traces.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from sqlalchemy import Engine

Value = str | int | float | bool
Metadata = Iterable[tuple[str, str | bytes]]

_ASKS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


class Tracer(Protocol):
    """What makes spans."""

    def serving(self, method: str, metadata: Metadata) -> AbstractContextManager[None]:
        """See the functions of this module."""
        ...

    def span(self, name: str, values: Mapping[str, Value]) -> AbstractContextManager[None]:
        """See the functions of this module."""
        ...

    def root(
        self, name: str, link: str, values: Mapping[str, Value]
    ) -> AbstractContextManager[None]:
        """See the functions of this module."""
        ...

    def note(self, values: Mapping[str, Value], *, failed: bool) -> None:
        """See the functions of this module."""
        ...

    def headers(self) -> dict[str, str]:
        """See the functions of this module."""
        ...

    def watch(self, database: Engine) -> None:
        """See the functions of this module."""
        ...

    def close(self) -> None:
        """See the functions of this module."""
        ...


_tracer: Tracer | None = None
_nothing: AbstractContextManager[None] = nullcontext()


def is_wanted() -> bool:
    """Whether the environment asks for traces, by OpenTelemetry's own variables."""
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporter = os.environ.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    if exporter:
        return exporter != "none"
    return any(os.environ.get(name) for name in _ASKS)


def start() -> None:
    """Trace from now on, if the environment asks for it.

    Raises:
        RuntimeError: OpenTelemetry is not installed.
        ValueError: the environment asks for what there is not.

    """
    if not is_wanted():
        return
    try:
        from unmask_server.telemetry.otel import from_environment
    except ModuleNotFoundError as error:
        raise RuntimeError(
            f"OTEL_… asks for traces, but {error.name} is missing: pip install 'unmask[otel]'"
        ) from None
    use(from_environment())


def use(tracer: Tracer | None) -> None:
    """Make spans by `tracer`; None: make none."""
    global _tracer
    _tracer = tracer


def stop() -> None:
    """Send what is not sent yet, and trace no more."""
    if _tracer is not None:
        _tracer.close()
    use(None)


def is_on() -> bool:
    """Whether anything is traced."""
    return _tracer is not None


def serving(method: str, metadata: Metadata) -> AbstractContextManager[None]:
    """The span of a call, part of the client's trace if its metadata names one."""
    return _nothing if _tracer is None else _tracer.serving(method, metadata)


def span(name: str, **values: Value) -> AbstractContextManager[None]:
    """A span of the work within, if that is part of a trace. Values are no contents of requests."""
    return _nothing if _tracer is None else _tracer.span(name, values)


def root(name: str, *, link: str = "", **values: Value) -> AbstractContextManager[None]:
    """The first span of a trace of its own, with a link to the span that `parent()` named."""
    return _nothing if _tracer is None else _tracer.root(name, link, values)


def note(*, failed: bool = False, **values: Value) -> None:
    """Say something of the span that this is part of."""
    if _tracer is not None:
        _tracer.note(values, failed=failed)


def headers() -> dict[str, str]:
    """What a request to another server carries so that its spans join the trace."""
    return {} if _tracer is None else _tracer.headers()


def parent() -> str:
    """The W3C traceparent of the span that this is part of; empty if there is none."""
    return headers().get("traceparent", "")


def watch(database: Engine) -> None:
    """Make spans of the SQL statements of traced work."""
    if _tracer is not None:
        _tracer.watch(database)
