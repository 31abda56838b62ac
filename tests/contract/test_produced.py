"""Reasons as clients get them: from real requests to a real server, and from faults beneath it."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Awaitable, Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_status import rpc_status
from sqlalchemy.exc import OperationalError
from unmask.v1 import cache_pb2, catalog_pb2, diagnosis_pb2, growth_pb2, sharing_pb2, trajectory_pb2
from unmask_server.api.errors import status_of
from unmask_server.catalog.errors import FailedPrecondition, QuotaExceeded
from unmask_server.engines.base import BadRequestError, EngineError, ModelChangedError
from unmask_server.reasons import Reason
from unmask_server.tree import VerifiersDifferError

from tests.collected import collected
from tests.contract.told import reason_of
from tests.e2e.conftest import MAX_NEW_TOKENS, World
from tests.e2e.test_main_job import grow, growth_of, prefix, sampled, sampling_of

Call = Callable[[], Awaitable[Any]]


async def reason(call: Call) -> Reason:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call()
    status = rpc_status.from_call(caught.value)
    assert status is not None
    return reason_of(status)


class Calls:
    """Requests with what they need; the rest is as good as can be."""

    def __init__(self, world: World, models: Path) -> None:
        self.stubs = world.stubs
        self.models = models
        self.world = world

    def policy(self, **fields: Any) -> Call:
        wanted = {"model": str(self.models / "student"), "max_new_tokens": MAX_NEW_TOKENS, **fields}
        request = catalog_pb2.RegisterPolicyRequest(**wanted)
        return lambda: self.stubs.catalog.RegisterPolicy(request)

    def teacher(self, **fields: Any) -> Call:
        request = catalog_pb2.RegisterTeacherRequest(**fields)
        return lambda: self.stubs.catalog.RegisterTeacher(request)

    def questions(self, *fields: dict[str, str], **options: Any) -> Call:
        specs = [
            catalog_pb2.QuestionSpec(name=one.pop("name", ""), fields=one)
            for one in map(dict, fields)
        ]
        request = catalog_pb2.RegisterQuestionsRequest(questions=specs, **options)
        return lambda: self.stubs.catalog.RegisterQuestions(request)

    def align(self, node: diagnosis_pb2.NodeRef | None = None, **fields: Any) -> Call:
        request = diagnosis_pb2.GetAlignmentRequest(
            node=node or prefix(), **{"teachers": ["teacher"], **fields}
        )
        return lambda: self.stubs.diagnosis.GetAlignment(request)

    def put(self, teacher: str, logprob: float) -> Call:
        said = catalog_pb2.TeacherDistribution(question="one", ids=[4], logprobs=[logprob])
        request = catalog_pb2.PutTeacherDistributionsRequest(teacher=teacher, distributions=[said])
        return lambda: self.stubs.catalog.PutTeacherDistributions(request)

    def outcome(self, rollout: str, reward: float = 0.5) -> Call:
        request = cache_pb2.PutOutcomesRequest(
            verifier="score",
            outcomes=[cache_pb2.RolloutOutcome(rollout=rollout, reward=reward)],
        )
        return lambda: self.stubs.cache.PutOutcomes(request)

    def generation(self, limit: int = MAX_NEW_TOKENS, **fields: Any) -> Call:
        request = sharing_pb2.ImportGenerationsRequest(
            policy="student",
            run="run",
            sampling=catalog_pb2.Sampling(),
            max_new_tokens=limit,
            generations=[sharing_pb2.TrainerGeneration(**fields)],
        )
        return lambda: self.stubs.cache.ImportGenerations(request)

    def growth(self, **options: Any) -> Call:
        fields = {"budget": growth_pb2.Budget(rollouts=8), **options}
        request = growth_of(growth_pb2.GrowthTarget(node=prefix()), **fields)
        return lambda: self.stubs.growth.StartGrowth(request)


async def expect(wanted: dict[Reason, Call]) -> None:
    found = {each: (await reason(call)).name for each, call in wanted.items()}
    assert found == {each: each.name for each in wanted}


async def test_what_is_not_there(world: World, models: Path) -> None:
    calls = Calls(world, models)
    await calls.stubs.catalog.RegisterVerifier(
        catalog_pb2.RegisterVerifierRequest(
            name="score", kind=catalog_pb2.VERIFIER_KIND_EXTERNAL, options={"source": "x"}
        )
    )
    verifier = diagnosis_pb2.NodeOptions(verifier="nobody")
    node = diagnosis_pb2.NodeRef(prefix=diagnosis_pb2.PrefixNode(policy="nobody", question="one"))
    get = trajectory_pb2.GetTrajectoryRequest(trajectory="trj-none")
    grown = growth_pb2.GetGrowthRequest(growth="gro-none")
    await expect(
        {
            Reason.POLICY_NOT_FOUND: calls.align(node),
            Reason.TEACHER_NOT_FOUND: calls.align(teachers=["nobody"]),
            Reason.QUESTION_NOT_FOUND: calls.align(prefix(question="none")),
            Reason.VERIFIER_NOT_FOUND: calls.align(options=verifier),
            Reason.TRAJECTORY_NOT_FOUND: lambda: calls.stubs.trajectory.GetTrajectory(get),
            Reason.ROLLOUT_NOT_FOUND: calls.outcome("0" * 32),
            Reason.GROWTH_NOT_FOUND: lambda: calls.stubs.growth.GetGrowth(grown),
        }
    )


async def test_what_is_there_and_is_another(world: World, models: Path) -> None:
    calls = Calls(world, models)
    await calls.stubs.catalog.RegisterVerifier(
        catalog_pb2.RegisterVerifierRequest(
            name="score", kind=catalog_pb2.VERIFIER_KIND_EXTERNAL, options={"source": "x"}
        )
    )
    trajectory = await sampled(world)
    await calls.outcome(trajectory.id, 0.5)()
    await calls.teacher(name="filed", stored="a file", policies=["student"])()
    await calls.put("filed", 0.0)()
    await calls.growth(request_id="used")()
    await expect(
        {
            Reason.NAME_TAKEN: calls.policy(name="student", max_new_tokens=4),
            Reason.ALREADY_NAMED: calls.policy(name="pupil"),
            Reason.REQUEST_ID_REUSED: calls.growth(
                request_id="used", budget=growth_pb2.Budget(rollouts=9)
            ),
            Reason.OUTCOME_DIFFERS: calls.outcome(trajectory.id, 0.6),
            Reason.DISTRIBUTION_DIFFERS: calls.put("filed", -1.0),
        }
    )


async def test_what_does_not_go_together(
    world: World, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Calls(world, models)
    await calls.stubs.catalog.RegisterVerifier(
        catalog_pb2.RegisterVerifierRequest(
            name="score", kind=catalog_pb2.VERIFIER_KIND_EXTERNAL, options={"source": "x"}
        )
    )
    await calls.teacher(name="filed", stored="a file", policies=["student"])()
    for context in ("hint", "own_correct"):
        shown = catalog_pb2.Context(name=context)
        await calls.teacher(name=context, base_policy="student", context=shown)()
    await calls.questions({"name": "long", "question": "q " * 300, "answer": "1"})()
    await calls.questions(
        {"name": "worded", "question": "q 7", "answer": "a word"}, verifier="exact"
    )()
    preview = catalog_pb2.PreviewPromptRequest(
        policy="student", teacher="own_correct", question="one"
    )
    graded = diagnosis_pb2.NodeOptions(verifier="last_number")
    scored = diagnosis_pb2.NodeOptions(verifier="score")
    warm = diagnosis_pb2.Algorithm(loss=diagnosis_pb2.LOSS_REVERSE_KL, temperature=2)
    other = str(models / "other")
    own = {Reason.NO_CORRECT_ROLLOUT: lambda: calls.stubs.catalog.PreviewPrompt(preview)}
    await expect(own)
    growth = await grow(world, growth_of(growth_pb2.GrowthTarget(node=prefix())))
    pause = growth_pb2.PauseGrowthRequest(growth=growth.id)
    gym = catalog_pb2.ReasoningGymSet(dataset="chain_sum", size=1)

    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr("unmask_server.catalog.verifiers.gym.metadata.version", missing)
    await expect(
        {
            Reason.TOKENIZER_MISMATCH: calls.teacher(model=other, policies=["student"]),
            Reason.PROMPT_TOO_LONG: lambda: collected(
                calls.stubs.trajectory.SampleTrajectories(sampling_of(world, questions=["long"]))
            ),
            Reason.CONTEXT_NOT_SHOWABLE: calls.align(teachers=["hint"]),
            Reason.VERIFIER_CANNOT_GRADE: calls.align(prefix(question="worded"), options=graded),
            Reason.OUTCOMES_MISSING: calls.align(options=scored),
            Reason.VERIFIER_IS_EXTERNAL: calls.growth(options=scored),
            Reason.LIBRARY_MISSING: calls.questions(reasoning_gym=gym),
            Reason.TEACHER_NOT_STORED: calls.put("teacher", 0.0),
            Reason.STORED_TEACHER_LIMITED: calls.align(teachers=["filed"], algorithms=[warm]),
            Reason.GROWTH_ENDED: lambda: calls.stubs.growth.PauseGrowth(pause),
        }
    )


async def test_a_model_that_is_gone_or_another(world: World, models: Path, tmp_path: Path) -> None:
    calls, folder = Calls(world, models), tmp_path / "copy"
    shutil.copytree(models / "student", folder)
    await calls.policy(name="copy", model=str(folder), max_new_tokens=3)()
    shutil.rmtree(folder)
    register = calls.teacher(base_policy="copy")
    await expect({Reason.MODEL_UNREADABLE: register})
    shutil.copytree(models / "teacher", folder)
    await expect({Reason.MODEL_CHANGED: register})


async def test_generations_and_records_that_are_not_this_caches(world: World, models: Path) -> None:
    calls = Calls(world, models)
    await calls.questions(
        {"question": "q 9 9", "answer": "1"}, {"question": "q 9 9", "answer": "2"}
    )()
    rollout = sharing_pb2.SharedRollout(
        id="0" * 32, policy_id="pol-x", question_id="que-x", tokens=[4], finish_reason=1
    )
    records = sharing_pb2.ImportCacheRequest(records=sharing_pb2.CacheRecords(rollouts=[rollout]))
    ended = {"tokens": [4, 0]}
    await expect(
        {
            Reason.SAMPLING_DIFFERS: calls.generation(MAX_NEW_TOKENS + 1, question="one", **ended),
            Reason.PROMPT_UNKNOWN: calls.generation(prompt_text="what else", **ended),
            Reason.PROMPT_AMBIGUOUS: calls.generation(prompt_text="q 9 9", **ended),
            Reason.GENERATIONS_DIFFER: calls.generation(question="one", prompt_tokens=[3], **ended),
            Reason.GENERATION_INCOMPLETE: calls.generation(question="one", tokens=[4]),
            Reason.RECORD_UNDESCRIBED: lambda: calls.stubs.cache.ImportCache(records),
        }
    )


async def test_what_can_never_be_right(world: World, models: Path) -> None:
    calls = Calls(world, models)
    broken = world.stubs.channel.unary_unary("/unmask.v1.CatalogService/GetPolicy")
    await expect(
        {
            Reason.INVALID_FIELD: calls.policy(max_new_tokens=-1),
            Reason.MALFORMED_REQUEST: lambda: broken(b"\xff\xff"),
        }
    )


def database(code: int) -> OperationalError:
    error = sqlite3.OperationalError("secret statement")
    error.sqlite_errorcode = code
    return OperationalError("SELECT secret", {}, error)


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (FailedPrecondition(Reason.PROMPT_EMPTY, "is empty"), Reason.PROMPT_EMPTY),
        (BadRequestError("an id"), Reason.MODEL_CANNOT),
        (ModelChangedError("another"), Reason.MODEL_CHANGED),
        (VerifiersDifferError("meanwhile"), Reason.OUTCOMES_MISSING),
        (QuotaExceeded("enough", 0.5), Reason.QUOTA_EXCEEDED),
        (EngineError("down"), Reason.ENGINE_UNAVAILABLE),
        (TimeoutError(), Reason.DATABASE_UNAVAILABLE),
        (database(sqlite3.SQLITE_BUSY), Reason.DATABASE_UNAVAILABLE),
        (database(sqlite3.SQLITE_IOERR), Reason.DATABASE_UNAVAILABLE),
        (database(sqlite3.SQLITE_FULL), Reason.DATABASE_FULL),
    ],
    ids=lambda value: getattr(value, "name", type(value).__name__),
)
def test_a_fault_beneath_has_a_reason_too(error: Exception, wanted: Reason) -> None:
    status = status_of(error)
    assert status is not None
    assert reason_of(status) is wanted
    assert "secret" not in str(status)
