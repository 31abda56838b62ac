"""Questions as people have them, through a real server."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import grpc
import pytest
from typer.testing import CliRunner
from unmask.cli.main import app
from unmask.v1 import catalog_pb2, diagnosis_pb2, growth_pb2
from unmask_server.catalog.verifiers import gym

from tests.collected import collected
from tests.e2e.conftest import World
from tests.e2e.test_main_job import grow, growth_of, prefix, sampling_of, statistics

SUMS = catalog_pb2.ReasoningGymSet(
    dataset="chain_sum",
    size=40,
    seed=1,
    prompt="none",
    config=json.dumps({"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}),
)


async def register(world: World, **options: object) -> list[catalog_pb2.Question]:
    response = await world.stubs.catalog.RegisterQuestions(
        catalog_pb2.RegisterQuestionsRequest(**options)
    )
    assert not [result.error for result in response.results if result.HasField("error")]
    return [result.question for result in response.results]


async def verifier_kinds(world: World) -> dict[str, catalog_pb2.VerifierKind.ValueType]:
    found = await world.stubs.catalog.ListVerifiers(catalog_pb2.ListVerifiersRequest())
    return {verifier.id: verifier.kind for verifier in found.verifiers}


async def test_each_question_has_the_verifier_that_suits_it_and_the_tag(world: World) -> None:
    rows = [
        {"question": "q 1 2", "answer": "1 + 2 = <<1+2=3>>3\n#### 3"},
        {"problem": "q 1", "solution": "so $\\boxed{\\frac12}$", "level": "Level 1", "type": "T"},
        {"question": "q", "answer": "2", "task": "mine"},
    ]
    lines = "\n".join(map(json.dumps, rows)).encode()
    found = await register(world, jsonl=lines, task="mixed")
    kinds = await verifier_kinds(world)
    assert [kinds[question.verifier_id] for question in found] == [
        catalog_pb2.VERIFIER_KIND_LAST_NUMBER,
        catalog_pb2.VERIFIER_KIND_MATH_VERIFY,
        catalog_pb2.VERIFIER_KIND_LAST_NUMBER,
    ]
    assert [question.fields["task"] for question in found] == ["mixed", "mixed", "mine"]
    assert found[0].fields["solution"] == "1 + 2 = 3\n#### 3"


async def test_the_command_registers_a_directory(world: World, tmp_path: Path) -> None:
    for i, answer in enumerate(("1", "see figure")):
        file = tmp_path / "MATH" / "algebra" / f"{i}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        row = {"problem": f"q {i}", "level": "Level 1", "type": "Algebra"}
        file.write_text(json.dumps({**row, "solution": f"\\boxed{{{answer}}}"}))
    command = ["question", "register", str(tmp_path / "MATH"), "--server", world.address]
    done = await asyncio.to_thread(CliRunner().invoke, app, command)
    assert done.exit_code == 2
    # The server's own lines may stand between.
    assert any(line.startswith("que-") for line in done.stdout.splitlines())
    assert "algebra/1.json: answer: the answer 'see figure'" in done.stderr
    assert "1 of 2 questions were refused" in done.stderr


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({}, "questions: one of questions, jsonl, reasoning_gym must be set"),
        (
            {"jsonl": b"{}", "reasoning_gym": SUMS},
            "questions: only one of questions, jsonl, reasoning_gym can be set",
        ),
        ({"reasoning_gym": catalog_pb2.ReasoningGymSet(size=1)}, "reasoning_gym.dataset"),
        (
            {"reasoning_gym": catalog_pb2.ReasoningGymSet(dataset="chain_sum")},
            "reasoning_gym.size: must be .* 1 and .* 10000, not 0",
        ),
        (
            {"reasoning_gym": catalog_pb2.ReasoningGymSet(dataset="chain_sum", size=10_001)},
            "reasoning_gym.size: must be .* 1 and .* 10000, not 10001",
        ),
        (
            {"reasoning_gym": catalog_pb2.ReasoningGymSet(dataset="chain_sum", size=1, seed=-1)},
            "reasoning_gym.seed",
        ),
        (
            {"reasoning_gym": catalog_pb2.ReasoningGymSet(dataset="x", size=1, config="[1]")},
            "reasoning_gym.config: no JSON object",
        ),
    ],
)
async def test_a_request_that_names_no_questions_says_which_field(
    world: World, options: dict[str, object], problem: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match=problem) as caught:
        await register(world, **options)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_server_without_the_library_says_what_to_install(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> str:
        raise gym.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(gym.metadata, "version", missing)
    row = {"question": "q", "reasoning_gym": "{}"}
    for options in (
        {"reasoning_gym": SUMS},
        {"jsonl": json.dumps(row).encode()},
        {"jsonl": json.dumps(row).encode(), "verifier": "reasoning_gym"},
    ):
        with pytest.raises(grpc.aio.AioRpcError, match="pip install") as caught:
            await register(world, **options)
        assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION


async def test_nothing_is_sampled_that_this_servers_library_cannot_grade(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("reasoning_gym")
    (question, *_) = await register(world, reasoning_gym=SUMS)
    monkeypatch.setattr(gym.metadata, "version", lambda _: "9.9.9")
    with pytest.raises(grpc.aio.AioRpcError, match="register the question anew") as caught:
        await collected(
            world.stubs.trajectory.SampleTrajectories(sampling_of(world, questions=[question.id]))
        )
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    target = growth_pb2.GrowthTarget(node=prefix(question=question.id))
    with pytest.raises(AssertionError, match="register the question anew"):
        await grow(world, growth_of(target))
    assert (await statistics(world)).rollouts_sampled == 0


async def test_a_procedural_question_grows_by_its_own_scorer(world: World) -> None:
    pytest.importorskip("reasoning_gym")
    found = await register(world, reasoning_gym=SUMS)
    assert [q.id for q in await register(world, reasoning_gym=SUMS)] == [q.id for q in found]
    kinds = await verifier_kinds(world)
    assert {kinds[q.verifier_id] for q in found} == {catalog_pb2.VERIFIER_KIND_REASONING_GYM}
    # The tiny student knows the digits 0 to 3 and no tags: the whole of what it says is graded.
    question = next(q for q in found if q.fields["answer"] in ("1", "2", "3"))
    await world.stubs.catalog.RegisterVerifier(
        catalog_pb2.RegisterVerifierRequest(
            name="whole",
            kind=catalog_pb2.VERIFIER_KIND_REASONING_GYM,
            options={"extract": "all", "truncated": "grade"},
        )
    )
    target = growth_pb2.GrowthTarget(node=prefix(question=question.id))
    growth = await grow(world, growth_of(target, rollouts_per_node=400))
    assert growth.rollouts_sampled == 400
    node = await world.stubs.diagnosis.GetNode(
        diagnosis_pb2.GetNodeRequest(
            node=prefix(question=question.id),
            options=diagnosis_pb2.NodeOptions(verifier="whole"),
        )
    )
    assert node.node.rollouts == 400
    right = {c.token.text.strip(): c.reward_sum for c in node.candidates if c.reward_sum}
    assert question.fields["answer"] in right
    assert all(c.reward_sum <= c.rollouts for c in node.candidates)
