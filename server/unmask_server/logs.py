"""Structured logs, on standard error.

Whatever logs, this program's modules or a library's, gives lines of one form. A line that belongs
to a call has its `request_id`, one that belongs to a growth `growth` as well; in a trace, also
`trace_id` and `span_id`. What clients send is in no line: of an error that nobody foresaw the
message is cut to its first line, with all that the request said taken out.
"""

from __future__ import annotations

import logging
import re
import sys
import traceback
from typing import Literal

import structlog
from structlog.typing import EventDict, ExcInfo, Processor

from unmask_server.telemetry import calls, tracing

LogFormat = Literal["console", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

_LONGEST = 300
"""Characters of an exception's message."""
_WORD = re.compile(r"\w{4,}")
"""What is looked for in the request: the texts of a message stand in its bytes as they are."""


def configure(log_format: LogFormat, level: LogLevel = "info") -> None:
    """Send the logs of everything to standard error, as `console` or `json` lines."""
    is_json = log_format == "json"
    renderer: Processor = (
        structlog.processors.JSONRenderer()
        if is_json
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        _add_call,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_trace,
        structlog.processors.ExceptionRenderer(_traceback),
    ]
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        # By one write a line, so that no other writer's gets into it.
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    # Libraries say much below a warning that is of no use to whoever runs a server.
    logging.basicConfig(level=max(logging.WARNING, _LEVELS[level]), handlers=[handler], force=True)


_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


def _add_call(_: object, __: str, event: EventDict) -> EventDict:
    """The request id, where this is part of a call."""
    if (call := calls.current()) is not None:
        event.setdefault("request_id", call.id)
    return event


def _add_trace(_: object, __: str, event: EventDict) -> EventDict:
    """The trace that this is part of, if it is part of one."""
    parts = tracing.parent().split("-")
    if len(parts) == 4:
        event["trace_id"], event["span_id"] = parts[1], parts[2]
    return event


def _traceback(exc_info: ExcInfo) -> str:
    """Where an exception came from, and what it says as far as that may stand in a log."""
    said = []
    for error in _chain(exc_info[1]):
        frames = traceback.format_tb(error.__traceback__)
        said.append("".join((*frames, f"{type(error).__name__}: {_message(error)}")))
    return "\n".join(said)


def _chain(error: BaseException | None) -> list[BaseException]:
    """An exception and those that it came from, the first one first."""
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.insert(0, error)
        cause = error.__cause__
        error = cause if cause or error.__suppress_context__ else error.__context__
    return chain


def _message(error: BaseException) -> str:
    """The first line, without the request's words: what follows are statements, rows and such."""
    first = next(iter(str(error).splitlines()), "")[:_LONGEST]
    call = calls.current()
    request = call.request if call is not None else b""
    return _WORD.sub(lambda word: "…" if word[0].encode() in request else word[0], first)
