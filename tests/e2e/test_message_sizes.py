"""A client with gRPC's own limits, 4 MiB for an answer, can use every method."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
from google.protobuf.descriptor import MethodDescriptor
from structlog.testing import LogCapture
from unmask.v1 import (
    cache_pb2,
    catalog_pb2,
    diagnosis_pb2,
    growth_pb2,
    sharing_pb2,
    trajectory_pb2,
)
from unmask_server.api import observing, paging
from unmask_server.api.sizes import PART_BYTES

from tests.access.test_calls import reason_of
from tests.collected import collected
from tests.e2e.conftest import MAX_NEW_TOKENS, Stubs, World, serving
from tests.e2e.test_main_job import grow, growth_of, prefix, sampling_of

GUIDE = Path(__file__).parents[2] / "docs" / "clients.md"
LIMIT = 4 * 2**20
METHODS: dict[str, MethodDescriptor] = {
    f"{service.name}.{method.name}": method
    for module in (catalog_pb2, trajectory_pb2, diagnosis_pb2, growth_pb2, cache_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
PAGED = {
    name: method
    for name, method in METHODS.items()
    if "page_token" in method.input_type.fields_by_name
}
STREAMED = {name for name, method in METHODS.items() if method.server_streaming}
OF_A_TREE = {"policy": "student", "question": "one"}
"""What ListRollouts must be told."""


async def pages(world: World, name: str, page_size: int = 1000) -> AsyncIterator[Any]:
    """All answers of a listing."""
    method = PAGED[name]
    service, _, rpc = name.partition(".")
    stub = getattr(world.stubs, service.removesuffix("Service").lower())
    given = OF_A_TREE if name == "CacheService.ListRollouts" else {}
    request = getattr(MODULES[method.input_type.file.name], method.input_type.name)
    token = ""
    while True:
        answer = await getattr(stub, rpc)(request(page_size=page_size, page_token=token, **given))
        yield answer
        token = answer.next_page_token
        if not token:
            return


MODULES = {
    module.DESCRIPTOR.name: module
    for module in (catalog_pb2, trajectory_pb2, diagnosis_pb2, growth_pb2, cache_pb2, sharing_pb2)
}


def items(answer: Any) -> list[Any]:
    (listed,) = (f.name for f in answer.DESCRIPTOR.fields if f.name != "next_page_token")
    return list(getattr(answer, listed))


@pytest.fixture
async def stored(world: World) -> World:
    """Something of each kind that is listed, and more than one."""
    await collected(world.stubs.trajectory.SampleTrajectories(sampling_of(world, count=3)))
    for request_id in ("a", "b"):
        target = growth_pb2.GrowthTarget(node=prefix())
        await grow(world, growth_of(target, request_id=request_id, rollouts_per_node=8))
    student = await world.stubs.catalog.GetPolicy(catalog_pb2.GetPolicyRequest(policy="student"))
    await world.stubs.catalog.RegisterPolicy(
        catalog_pb2.RegisterPolicyRequest(
            name="other", model=student.policy.model.source, max_new_tokens=MAX_NEW_TOKENS - 1
        )
    )
    exact = catalog_pb2.VERIFIER_KIND_EXACT
    await world.stubs.catalog.RegisterVerifier(
        catalog_pb2.RegisterVerifierRequest(name="to-the-letter", kind=exact)
    )
    return world


async def test_a_page_ends_where_it_grows_large_and_nothing_is_lost(
    stored: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in PAGED:
        whole = [item async for answer in pages(stored, name) for item in items(answer)]
        assert len(whole) > 1, name
        with monkeypatch.context() as patch:
            patch.setattr(paging, "PAGE_BYTES", 1)
            one_by_one = [items(answer) async for answer in pages(stored, name)]
        assert one_by_one == [[item] for item in whole], name


async def test_large_questions_are_listed_and_exported_in_parts_that_any_client_takes(
    world: World,
) -> None:
    wanted = {f"large-{i}" for i in range(24)}
    for name in sorted(wanted):
        fields = {"question": "q 1 2", "answer": "3", "solution": name + "x" * 400_000}
        await world.stubs.catalog.RegisterQuestions(
            catalog_pb2.RegisterQuestionsRequest(
                questions=[catalog_pb2.QuestionSpec(name=name, fields=fields)],
                verifier="last_number",
            )
        )
    # Without options of its own: gRPC's limits.
    async with grpc.aio.insecure_channel(world.address) as channel:
        usual = World(Stubs(channel), world.address, world.app, world.settings)
        listed = set()
        async for answer in pages(usual, "CatalogService.ListQuestions"):
            assert answer.ByteSize() < paging.PAGE_BYTES
            listed |= {question.name for question in answer.questions}
        assert wanted < listed
        for questions in ([], sorted(wanted)):
            exported = []
            async for part in usual.stubs.cache.ExportCache(
                sharing_pb2.ExportCacheRequest(questions=questions)
            ):
                assert part.ByteSize() < PART_BYTES + LIMIT // 8
                exported += [question.name for question in part.records.questions]
            assert wanted <= set(exported)
            assert len(exported) == len(set(exported))


async def test_an_export_that_was_cut_off_between_large_questions_goes_on(world: World) -> None:
    names = [f"large-{i}" for i in range(4)]
    for name in names:
        fields = {"question": "q 1 2", "answer": "3", "solution": name + "x" * 300_000}
        await world.stubs.catalog.RegisterQuestions(
            catalog_pb2.RegisterQuestionsRequest(
                questions=[catalog_pb2.QuestionSpec(name=name, fields=fields)],
                verifier="last_number",
            )
        )
    for chosen in ([], names):
        got: list[str] = []
        cursor = ""
        for _ in range(20):
            request = sharing_pb2.ExportCacheRequest(questions=chosen, cursor=cursor)
            call = world.stubs.cache.ExportCache(request)
            part = await call.read()
            call.cancel()
            if part is grpc.aio.EOF:
                break
            got += [question.name for question in part.records.questions]
            cursor = part.cursor
        assert [name for name in got if name in names] == names


async def test_an_answer_larger_than_the_server_sends_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whatever an earlier test of this process set up for logs.
    captured = LogCapture()
    logger = structlog.wrap_logger(structlog.PrintLogger(), processors=[captured])
    monkeypatch.setattr(observing, "log", logger)
    logs = captured.entries
    async with serving(f"sqlite:///{tmp_path}/unmask.db", tmp_path, max_message_mib=1) as world:
        # An answer says more of each question than the request: its id, its verifier, a time.
        rows = [{"question": f"q {i} {'x' * 20}", "answer": "3"} for i in range(9000)]
        request = catalog_pb2.RegisterQuestionsRequest(
            jsonl="\n".join(map(json.dumps, rows)).encode(), verifier="last_number"
        )
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await world.stubs.catalog.RegisterQuestions(request)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert reason_of(caught.value) == "ANSWER_TOO_LARGE"
        assert "ask for less at once" in str(caught.value.details())
        async with asyncio.timeout(60):
            while not logs:  # noqa: ASYNC110 - a line is written after its answer was sent
                await asyncio.sleep(0.01)
        assert [line["reason"] for line in logs] == ["ANSWER_TOO_LARGE"]
        # What it did is kept.
        few = catalog_pb2.ListQuestionsRequest(page_size=1)
        assert (await world.stubs.catalog.ListQuestions(few)).questions


async def test_an_answer_larger_than_a_client_takes_is_refused_by_the_client(world: World) -> None:
    rows = [
        catalog_pb2.QuestionSpec(
            name=f"large-{i}",
            fields={"question": f"q 1 {i}", "answer": "3", "solution": "x" * 900_000},
        )
        for i in range(5)
    ]
    request = catalog_pb2.RegisterQuestionsRequest(questions=rows, verifier="last_number")
    with pytest.raises(grpc.aio.AioRpcError, match="CLIENT: Received message larger than max") as e:
        await world.stubs.catalog.RegisterQuestions(request)
    assert e.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_the_guide_says_of_every_method_how_large_its_answers_are() -> None:
    table = GUIDE.read_text(encoding="utf-8").partition("## Message sizes")[2]
    told = set(re.findall(r"`(\w+Service\.\w+)`", table.partition("\n## ")[0]))
    unary = set(METHODS) - set(PAGED) - STREAMED
    growing = {
        name
        for name in unary
        if any(field.is_repeated for field in METHODS[name].output_type.fields)
        or any(
            field.message_type and field.message_type.name in ("Trajectory", "RenderedPrompt")
            for field in METHODS[name].output_type.fields
        )
    }
    assert told >= growing - SMALL
    assert told <= unary


SMALL = {
    # Of one model: its end tokens, addresses and warnings.
    "CatalogService.RegisterPolicy",
    "CatalogService.RegisterTeacher",
    # A line for each kind of what was imported.
    "CacheService.ImportCache",
}
