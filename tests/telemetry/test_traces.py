"""One trace from the client through the server to the engine and the database."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
import unmask
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from unmask.tracing import calling
from unmask.v1 import catalog_pb2
from unmask_server.app import build
from unmask_server.catalog.types import Model
from unmask_server.config import Settings
from unmask_server.database.migrate import migrate
from unmask_server.engines.sglang import SglangEngine
from unmask_server.serve import running
from unmask_server.telemetry import tracing
from unmask_server.telemetry.otel import OtelTracer

from tests.e2e.conftest import Stubs, World, fill
from tests.e2e.scripted_engine import VOCABULARY
from tests.sglang.stand_in import StandIn
from tests.sglang.test_faults import SERVING
from tests.telemetry.conftest import eventually, telling

CANARY = "canary-9f3b"


class Traced:
    """A server whose engine is an SGLang server, and the spans of all."""

    def __init__(self, client: unmask.AsyncClient, stand_in: StandIn, stubs: Stubs) -> None:
        self.client, self.stand_in, self.stubs = client, stand_in, stubs
        self.exporter = InMemorySpanExporter()

    def spans(self, name: str = "", kind: SpanKind | None = None) -> list[ReadableSpan]:
        return [
            span
            for span in self.exporter.get_finished_spans()
            if name in ("", span.name) and kind in (None, span.kind)
        ]


@pytest.fixture
async def traced(
    tmp_path: Path, models: Path, empty_url: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Traced]:
    provider = TracerProvider()
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    tracing.use(OtelTracer(provider))
    migrate(empty_url)
    settings = Settings(database=empty_url, listen=[f"unix:{tmp_path}/s"], grace_seconds=0.2)
    async with StandIn(VOCABULARY).running() as stand_in:

        async def open_engine(model: Model, vocab_size: int) -> SglangEngine:
            return SglangEngine(
                [stand_in.url], SERVING, columns=VOCABULARY, usable=VOCABULARY,
                max_context=4000, eos_ids=(0,),
            )  # fmt: skip

        app = build(settings, open_engine)
        try:
            async with (
                running(settings, app) as (address,),
                grpc.aio.insecure_channel(address) as channel,
                unmask.AsyncClient(address) as client,
            ):
                found = Traced(client, stand_in, Stubs(channel))
                await fill(World(found.stubs, "", app, settings), models)
                provider.add_span_processor(SimpleSpanProcessor(found.exporter))
                yield found
        finally:
            tracing.stop()


async def one_trajectory(traced: Traced) -> str:
    found = await traced.client.sample_trajectories("student", ["one"], count=1, seed=7)
    return str(found.trajectories[0].id)


def ids(spans: Sequence[ReadableSpan]) -> set[int]:
    return {span.context.trace_id for span in spans}


async def test_one_trace_from_the_client_to_engine_and_database(traced: Traced) -> None:
    trajectory = await one_trajectory(traced)
    traced.exporter.clear()
    traced.stand_in.traceparents.clear()
    await traced.client.alignment(trajectory=trajectory, position=0, teachers=["teacher"])
    name = "unmask.v1.DiagnosisService/GetAlignment"
    (asked,) = traced.spans(name, SpanKind.CLIENT)
    (served,) = await eventually(lambda: traced.spans(name, SpanKind.SERVER))
    (read,) = traced.spans("node.read")
    (diagnosed,) = traced.spans("node.diagnose")
    scored = traced.spans("engine.score")
    selects = traced.spans("SELECT", SpanKind.CLIENT)
    assert served.parent is not None
    assert served.parent.span_id == asked.context.span_id
    assert read.parent is not None
    assert read.parent.span_id == diagnosed.parent.span_id == served.context.span_id  # type: ignore[union-attr]
    assert len(scored) >= 2
    assert len(selects) >= 3
    assert ids([asked]) == ids(traced.spans())
    told = {parent.split("-")[1] for parent in traced.stand_in.traceparents}
    assert told == {f"{asked.context.trace_id:032x}"}
    sent = {int(parent.split("-")[2], 16) for parent in traced.stand_in.traceparents}
    assert sent <= {span.context.span_id for span in scored}
    assert served.attributes is not None
    assert served.attributes["rpc.grpc.status_code"] == 0


async def test_a_growth_is_a_trace_of_its_own_with_a_link_to_its_call(traced: Traced) -> None:
    trajectory = await one_trajectory(traced)
    traced.exporter.clear()
    handle = await traced.client.grow(trajectory, rollouts_per_node=8, rollouts=64)
    await handle.wait()
    (started,) = traced.spans("unmask.v1.GrowthService/StartGrowth", SpanKind.SERVER)
    (growth,) = await eventually(lambda: traced.spans("growth"))
    (link,) = growth.links
    assert link.context.span_id == started.context.span_id
    assert growth.context.trace_id != started.context.trace_id
    assert growth.parent is None
    for name in ("growth.plan", "growth.sample", "growth.store", "tree.insert"):
        assert ids(traced.spans(name)) == ids([growth]), name
    told = {parent.split("-")[1] for parent in traced.stand_in.traceparents}
    assert f"{growth.context.trace_id:032x}" in told


async def test_spans_say_what_failed_but_not_what_was_sent(traced: Traced) -> None:
    row = {"name": CANARY, "question": f"{CANARY} 1 2", "answer": "3", "hint": CANARY}
    await traced.client.register_questions([row], verifier="last_number")
    await traced.client.preview_prompt(teacher="teacher", question=CANARY)
    with pytest.raises(unmask.NotFoundError):
        await traced.client.get_policy("nobody")
    (asked,) = traced.spans("unmask.v1.CatalogService/GetPolicy", SpanKind.CLIENT)
    assert asked.status.status_code is StatusCode.ERROR
    assert asked.attributes is not None
    assert asked.attributes["rpc.grpc.status_code"] == grpc.StatusCode.NOT_FOUND.value[0]
    assert traced.spans("INSERT")
    for span in traced.spans():
        assert CANARY not in span.to_json()


async def test_work_that_is_no_call_is_not_traced(traced: Traced) -> None:
    # Leases are renewed and growths looked for all the time.
    await one_trajectory(traced)
    assert all(span.parent for span in traced.spans() if span.kind is not SpanKind.CLIENT
               and not span.name.startswith("unmask.v1."))  # fmt: skip


@pytest.mark.parametrize("module", ["unmask", "unmask_server.serve"])
def test_without_traces_opentelemetry_is_not_imported(module: str) -> None:
    code = f"import {module}, sys; print([m for m in sys.modules if m.startswith('opentelemetry')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:4317"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x:4317"}, True),
        ({"OTEL_TRACES_EXPORTER": "console"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, False),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, False),
    ],
)
def test_opentelemetrys_own_variables_ask_for_traces(
    environment: dict[str, str], wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_SDK_DISABLED",
                 "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert tracing.is_wanted() is wanted


def test_an_exporter_that_there_is_not_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "zipkin")
    with pytest.raises(ValueError, match="OTEL_TRACES_EXPORTER: 'zipkin' is none of otlp, console"):
        tracing.start()


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """As much of an OpenTelemetry collector as takes spans."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, str]] = []

    def Export(self, request: Any, context: Any) -> Any:
        for resource in request.resource_spans:
            values = {one.key: one.value.string_value for one in resource.resource.attributes}
            for scope in resource.scope_spans:
                self.spans += [(values["service.name"], span.name) for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.mark.slow
async def test_a_server_sends_its_spans_to_a_collector(tmp_path: Path) -> None:
    collector, server = Collector(), grpc.server(futures.ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    url = f"sqlite:///{tmp_path}/unmask.db"
    environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
        "OTEL_BSP_SCHEDULE_DELAY": "50",
    }
    async with telling(tmp_path, url, **environment) as told:
        await told.stubs.catalog.ListPolicies(catalog_pb2.ListPoliciesRequest())
        wanted = {("unmask-server", "unmask.v1.CatalogService/ListPolicies"),
                  ("unmask-server", "SELECT")}  # fmt: skip
        await eventually(lambda: wanted <= set(collector.spans))
        line = await told.line(event="call")
        assert len(line["trace_id"]) == 32
    server.stop(None)


@pytest.mark.parametrize("given_up", [asyncio.CancelledError, GeneratorExit])
def test_the_span_of_a_call_that_was_given_up_says_so(
    given_up: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    provider, exporter = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    with pytest.raises(given_up), calling("/unmask.v1.CatalogService/GetPolicy", ()):
        raise given_up
    (span,) = exporter.get_finished_spans()
    assert span.attributes is not None
    assert span.attributes["rpc.grpc.status_code"] == grpc.StatusCode.CANCELLED.value[0]
