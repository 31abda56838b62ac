"""Spans of calls, in programs that trace with OpenTelemetry.

Nothing is imported: a program that traces has imported `opentelemetry.trace` itself. Its own tracer
provider, sampler and propagators are used; without one that records, nothing is done.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

Metadata = tuple[tuple[str, str], ...]


@contextmanager
def calling(path: str, metadata: Metadata) -> Iterator[Metadata]:
    """The span of a call, and the metadata that makes the server's spans a part of it.

    Args:
        path: of the method, `/unmask.v1.Service/Method`.
        metadata: of the call.

    """
    if "opentelemetry.trace" not in sys.modules:
        yield metadata
        return
    from opentelemetry import propagate, trace

    service, _, method = path.removeprefix("/").rpartition("/")
    # Never the current one: a stream's caller goes on with other things in between.
    span = trace.get_tracer("unmask").start_span(
        f"{service}/{method}",
        kind=trace.SpanKind.CLIENT,
        attributes={"rpc.system": "grpc", "rpc.service": service, "rpc.method": method},
    )
    carrier: dict[str, str] = {}
    propagate.inject(carrier, trace.set_span_in_context(span))
    code = grpc.StatusCode.OK
    try:
        yield (*metadata, *carrier.items())
    except grpc.RpcError as error:
        code = error.code()
        span.set_status(trace.Status(trace.StatusCode.ERROR, code.name))
        raise
    except (GeneratorExit, asyncio.CancelledError):
        code = grpc.StatusCode.CANCELLED
        raise
    finally:
        span.set_attribute("rpc.grpc.status_code", code.value[0])
        span.end()
