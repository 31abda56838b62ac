"""Spans by OpenTelemetry. Imported only where traces are asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
from opentelemetry.trace import Link, SpanKind, Status, StatusCode
from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import ExceptionContext

from unmask_server.telemetry.tracing import Metadata, Value

_LONGEST_STATEMENT = 1000
"""Characters of SQL that a span holds; values are never among them, they are sent apart."""


def from_environment() -> OtelTracer:
    """As OpenTelemetry's variables have it: exporter, endpoint, sampler, resource, propagators.

    Raises:
        ValueError: OTEL_TRACES_EXPORTER or OTEL_EXPORTER_OTLP_PROTOCOL names none there is.

    """
    resource = Resource.create({SERVICE_VERSION: version("unmask")})
    if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: "unmask-server"}))
    provider = TracerProvider(resource=resource)
    for name in os.environ.get("OTEL_TRACES_EXPORTER", "otlp").split(","):
        provider.add_span_processor(BatchSpanProcessor(_exporter(name.strip().lower())))
    return OtelTracer(provider)


def _exporter(name: str) -> SpanExporter:
    if name == "console":
        return ConsoleSpanExporter()
    if name != "otlp":
        raise ValueError(f"OTEL_TRACES_EXPORTER: {name!r} is none of otlp, console, none")
    protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get(
        "OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"
    )
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        return OTLPSpanExporter()
    if protocol == "http/protobuf":
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (
            OTLPSpanExporter as HttpExporter,
        )

        return HttpExporter()
    raise ValueError(f"OTEL_EXPORTER_OTLP_PROTOCOL: {protocol!r} is none of grpc, http/protobuf")


class OtelTracer:
    """See `tracing.Tracer`."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("unmask_server", version("unmask"))

    @contextmanager
    def serving(self, method: str, metadata: Metadata) -> Iterator[None]:
        """See `tracing.serving`."""
        carrier = {key: value for key, value in metadata if isinstance(value, str)}
        service, _, name = method.rpartition("/")
        values = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}
        with self._tracer.start_as_current_span(
            method,
            context=propagate.extract(carrier, context=Context()),
            kind=SpanKind.SERVER,
            attributes=values,
            record_exception=False,
            set_status_on_exception=False,
        ):
            yield

    @contextmanager
    def span(self, name: str, values: Mapping[str, Value]) -> Iterator[None]:
        """See `tracing.span`."""
        if not trace.get_current_span().get_span_context().is_valid:
            yield
            return
        with self._started(name, values):
            yield

    @contextmanager
    def root(self, name: str, link: str, values: Mapping[str, Value]) -> Iterator[None]:
        """See `tracing.root`."""
        before = trace.get_current_span(propagate.extract({"traceparent": link}, Context()))
        origin = before.get_span_context()
        links = [Link(origin)] if origin.is_valid else []
        with self._started(name, values, context=Context(), links=links):
            yield

    @contextmanager
    def _started(self, name: str, values: Mapping[str, Value], **how: Any) -> Iterator[None]:
        # No exceptions on spans: their texts may hold what a client sent.
        with self._tracer.start_as_current_span(
            name,
            attributes=values,
            record_exception=False,
            set_status_on_exception=False,
            **how,
        ) as span:
            try:
                yield
            except BaseException as error:
                span.set_status(Status(StatusCode.ERROR, type(error).__name__))
                raise

    def note(self, values: Mapping[str, Value], *, failed: bool) -> None:
        """See `tracing.note`."""
        span = trace.get_current_span()
        span.set_attributes(values)
        if failed:
            span.set_status(Status(StatusCode.ERROR))

    def headers(self) -> dict[str, str]:
        """See `tracing.headers`."""
        carrier: dict[str, str] = {}
        propagate.inject(carrier)
        return carrier

    def watch(self, database: Engine) -> None:
        """See `tracing.watch`."""
        system = "sqlite" if database.dialect.name == "sqlite" else "postgresql"

        @event.listens_for(database, "before_cursor_execute")
        def begin(
            connection: Connection, _: Any, statement: str, __: Any, context: Any, ___: bool
        ) -> None:
            if context is None or not trace.get_current_span().get_span_context().is_valid:
                return
            context.unmask_span = self._tracer.start_span(
                statement.split(None, 1)[0].upper(),
                kind=SpanKind.CLIENT,
                attributes={
                    "db.system.name": system,
                    "db.query.text": statement[:_LONGEST_STATEMENT],
                },
            )

        @event.listens_for(database, "after_cursor_execute")
        def end(_: Connection, __: Any, ___: str, ____: Any, context: Any, _____: bool) -> None:
            if (span := getattr(context, "unmask_span", None)) is not None:
                context.unmask_span = None
                span.end()

        @event.listens_for(database, "handle_error")
        def fail(error: ExceptionContext) -> None:
            span = getattr(error.execution_context, "unmask_span", None)
            if span is not None:
                span.set_status(Status(StatusCode.ERROR, type(error.original_exception).__name__))
                span.end()

    def close(self) -> None:
        """See `tracing.stop`."""
        self._provider.shutdown()
