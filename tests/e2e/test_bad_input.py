"""Whatever a client sends, it gets a canonical code that says which field, and nothing changes."""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from unmask.v1 import cache_pb2, catalog_pb2, diagnosis_pb2, growth_pb2, trajectory_pb2

from tests.collected import collected
from tests.contract.told import reason_of
from tests.e2e.conftest import MAX_NEW_TOKENS, World
from tests.e2e.test_main_job import at, growth_of, prefix, sampled, sampling_of, statistics

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
EXISTS = grpc.StatusCode.ALREADY_EXISTS

Call = Callable[[World, Path], Awaitable[Any]]


def align(node: diagnosis_pb2.NodeRef, **options: Any) -> Call:
    request = diagnosis_pb2.GetAlignmentRequest(node=node, **{"teachers": ["teacher"], **options})
    return lambda world, _: world.stubs.diagnosis.GetAlignment(request)


def grow_with(**options: Any) -> Call:
    request = growth_of(growth_pb2.GrowthTarget(node=prefix()), **options)
    return lambda world, _: world.stubs.growth.StartGrowth(request)


def sample(**options: Any) -> Call:
    return lambda world, _: collected(
        world.stubs.trajectory.SampleTrajectories(sampling_of(world, **options))
    )


def submit(**options: Any) -> Call:
    request = trajectory_pb2.SubmitTrajectoryRequest(
        **{"policy": "student", "question": "one", **options}
    )
    return lambda world, _: world.stubs.trajectory.SubmitTrajectory(request)


def policy(**options: Any) -> Call:
    def call(world: World, models: Path) -> Awaitable[Any]:
        fields = {"model": str(models / "student"), "max_new_tokens": 5, **options}
        return world.stubs.catalog.RegisterPolicy(catalog_pb2.RegisterPolicyRequest(**fields))

    return call


def teacher(folder: str = "teacher", **options: Any) -> Call:
    def call(world: World, models: Path) -> Awaitable[Any]:
        fields = {"model": str(models / folder), "policies": ["student"], **options}
        return world.stubs.catalog.RegisterTeacher(catalog_pb2.RegisterTeacherRequest(**fields))

    return call


def ids(*tokens: int) -> trajectory_pb2.TokenIds:
    return trajectory_pb2.TokenIds(ids=tokens)


def algorithm(**options: Any) -> dict[str, Any]:
    return {"algorithms": [diagnosis_pb2.Algorithm(**options)]}


REVERSE, SAMPLED = diagnosis_pb2.LOSS_REVERSE_KL, diagnosis_pb2.FORM_SAMPLED

CASES: dict[str, tuple[Call, grpc.StatusCode, str]] = {
    # nodes
    "no node": (align(diagnosis_pb2.NodeRef()), INVALID, "node"),
    "unknown trajectory": (align(at("trj-none", 0)), NOT_FOUND, "trj-none"),
    "unknown policy": (
        align(
            diagnosis_pb2.NodeRef(prefix=diagnosis_pb2.PrefixNode(policy="nobody", question="one"))
        ),
        NOT_FOUND,
        "nobody",
    ),
    "unknown question": (align(prefix(question="none")), NOT_FOUND, "none"),
    "unknown teacher": (align(prefix(), teachers=["nobody"]), NOT_FOUND, "nobody"),
    "negative token": (align(prefix(3, -1)), INVALID, "node.prefix.tokens.ids[1]"),
    "token above the vocabulary": (align(prefix(3, 21)), INVALID, "node.prefix.tokens.ids[1]"),
    "observed token out of range": (
        align(prefix(observed=21)),
        INVALID,
        "node.prefix.observed_token",
    ),
    "prefix after an end token": (align(prefix(0, 4)), INVALID, "node.prefix.tokens.ids[0]"),
    "prefix as long as a generation": (
        align(prefix(*[4] * MAX_NEW_TOKENS)),
        INVALID,
        "node.prefix.tokens.ids",
    ),
    "unknown verifier": (
        align(prefix(), options=diagnosis_pb2.NodeOptions(verifier="nobody")),
        NOT_FOUND,
        "nobody",
    ),
    "top_k too large": (
        align(prefix(), options=diagnosis_pb2.NodeOptions(top_k=1001)),
        INVALID,
        "options.top_k",
    ),
    "coverage above 1": (
        align(prefix(), options=diagnosis_pb2.NodeOptions(min_coverage=1.5)),
        INVALID,
        "options.min_coverage",
    ),
    "coverage that is no number": (
        align(prefix(), options=diagnosis_pb2.NodeOptions(min_coverage=float("nan"))),
        INVALID,
        "options.min_coverage",
    ),
    "a freshness that there is not": (
        align(prefix(), options=diagnosis_pb2.NodeOptions(freshness=99)),
        INVALID,
        "options.freshness",
    ),
    "a text with an unknown end": (
        align(
            diagnosis_pb2.NodeRef(
                prefix=diagnosis_pb2.PrefixNode(
                    policy="student", question="one", text="so <eos> so"
                )
            )
        ),
        INVALID,
        "node.prefix.text[1]",
    ),
    "a NUL in a name": (align(prefix(), teachers=["a\0b"]), INVALID, "teachers[0]"),
    # algorithms
    "no loss": (align(prefix(), **algorithm()), INVALID, "algorithms[0].loss"),
    "a weight whose square is no number": (
        align(
            prefix(),
            **algorithm(loss=diagnosis_pb2.LOSS_REVERSE_KL, reward_weight=1e300),
        ),
        INVALID,
        "algorithms[0].reward_weight",
    ),
    "beta of 1": (
        align(prefix(), **algorithm(loss=diagnosis_pb2.LOSS_JSD, beta=1.0)),
        INVALID,
        "algorithms[0].beta",
    ),
    "beta without JSD": (
        align(prefix(), **algorithm(loss=REVERSE, beta=0.5)),
        INVALID,
        "algorithms[0].beta",
    ),
    "loss at temperature 0": (
        align(prefix(), **algorithm(loss=REVERSE, temperature=0.0)),
        INVALID,
        "algorithms[0].temperature",
    ),
    "sampled without an observed token": (
        align(prefix(), **algorithm(loss=REVERSE, form=SAMPLED)),
        INVALID,
        "algorithms[0].form",
    ),
    "sampled policy gradient without a trajectory": (
        align(prefix(observed=4), **algorithm(loss=diagnosis_pb2.LOSS_GRPO, form=SAMPLED)),
        INVALID,
        "algorithms[0].form",
    ),
    "no teacher": (align(prefix(), teachers=[]), INVALID, "teachers"),
    "a teacher twice": (align(prefix(), teachers=["teacher"] * 2), INVALID, "teachers"),
    # growth
    "no request_id": (grow_with(request_id=""), INVALID, "request_id"),
    "long request_id": (grow_with(request_id="x" * 201), INVALID, "request_id"),
    "a half width whose square is no number": (
        grow_with(
            allocation=growth_pb2.ALLOCATION_ADAPTIVE,
            precision=growth_pb2.Precision(half_width=1e300),
        ),
        INVALID,
        "precision.half_width",
    ),
    "no targets": (grow_with(targets=[]), INVALID, "targets"),
    "an empty target": (
        grow_with(targets=[growth_pb2.GrowthTarget()]),
        INVALID,
        "targets[0]",
    ),
    "no budget": (grow_with(budget=growth_pb2.Budget()), INVALID, "budget"),
    "a budget of zero": (
        grow_with(budget=growth_pb2.Budget(rollouts=0)),
        INVALID,
        "budget.rollouts",
    ),
    "a budget of a billion": (
        grow_with(budget=growth_pb2.Budget(rollouts=10**9)),
        INVALID,
        "budget.rollouts",
    ),
    "a goal below zero": (grow_with(rollouts_per_node=-1), INVALID, "rollouts_per_node"),
    "an unknown allocation": (grow_with(allocation=99), INVALID, "allocation"),
    "an unknown growth": (
        lambda world, _: world.stubs.growth.GetGrowth(growth_pb2.GetGrowthRequest(growth="gro-x")),
        NOT_FOUND,
        "gro-x",
    ),
    "a growth without an id": (
        lambda world, _: world.stubs.growth.GetGrowth(growth_pb2.GetGrowthRequest()),
        INVALID,
        "growth",
    ),
    "cancelling an unknown growth": (
        lambda world, _: world.stubs.growth.CancelGrowth(
            growth_pb2.CancelGrowthRequest(growth="gro-x")
        ),
        NOT_FOUND,
        "gro-x",
    ),
    # trajectories
    "a count of zero": (sample(count=0), INVALID, "count"),
    "a count of a million": (sample(count=1_000_000), INVALID, "count"),
    "no questions": (sample(questions=[]), INVALID, "questions"),
    "a question twice": (sample(questions=["one", "one"]), INVALID, "questions"),
    "an empty generation": (submit(tokens=ids()), INVALID, "tokens.ids"),
    "no generation": (submit(), INVALID, "generation"),
    "a generation with a wrong id": (submit(tokens=ids(3, 21)), INVALID, "tokens.ids[1]"),
    "a generation that is too long": (
        submit(tokens=ids(*[4] * (MAX_NEW_TOKENS + 1))),
        INVALID,
        "tokens.ids",
    ),
    "a generation that goes on after its end": (
        submit(tokens=ids(4, 0, 4)),
        INVALID,
        "tokens.ids[1]",
    ),
    "stopped without a stop token": (
        submit(tokens=ids(4, 4), finish_reason=trajectory_pb2.FINISH_REASON_STOP),
        INVALID,
        "finish_reason",
    ),
    # the catalog
    "no such directory": (policy(model="/nowhere"), INVALID, "model"),
    "a directory's name that is none": (policy(model="x" * 100_000), INVALID, "model"),
    "a NUL in a field": (
        lambda world, _: world.stubs.catalog.RegisterQuestions(
            catalog_pb2.RegisterQuestionsRequest(
                questions=[catalog_pb2.QuestionSpec(fields={"question": "a\0", "answer": "1"})]
            )
        ),
        INVALID,
        "questions[0].fields['question']",
    ),
    "temperature 0": (
        policy(sampling=catalog_pb2.Sampling(temperature=0)),
        INVALID,
        "sampling.temperature",
    ),
    "a temperature that is no number": (
        policy(sampling=catalog_pb2.Sampling(temperature=float("nan"))),
        INVALID,
        "sampling.temperature",
    ),
    "top_p of 0": (policy(sampling=catalog_pb2.Sampling(top_p=0)), INVALID, "sampling.top_p"),
    "top_k below 0": (policy(sampling=catalog_pb2.Sampling(top_k=-1)), INVALID, "sampling.top_k"),
    "more new tokens than the context": (
        policy(max_new_tokens=256),
        INVALID,
        "max_new_tokens",
    ),
    "a stop id out of range": (policy(stop_ids=[21]), INVALID, "stop_ids[0]"),
    "a stop text of two tokens": (policy(stop_texts=["so so"]), INVALID, "stop_texts[0]"),
    "a name that is taken": (policy(name="student", max_new_tokens=4), EXISTS, "name"),
    "a chat prompt with a template": (
        policy(prompting=catalog_pb2.Prompting(style=catalog_pb2.PROMPT_STYLE_CHAT, template="x")),
        INVALID,
        "prompting.template",
    ),
    "a teacher with another tokenizer": (teacher("other"), PRECONDITION, "another tokenizer"),
    "a teacher for nobody": (teacher(policies=[]), INVALID, "policies"),
    "a context that is none": (
        teacher(context=catalog_pb2.Context(name="nothing")),
        INVALID,
        "context.name",
    ),
    "a context template that is none": (
        teacher(context=catalog_pb2.Context(name="mine", template="{{ question")),
        INVALID,
        "context.template",
    ),
    "a verifier without a kind": (
        lambda world, _: world.stubs.catalog.RegisterVerifier(
            catalog_pb2.RegisterVerifierRequest(name="v")
        ),
        INVALID,
        "kind",
    ),
    "a built-in verifier's name": (
        lambda world, _: world.stubs.catalog.RegisterVerifier(
            catalog_pb2.RegisterVerifierRequest(name="boxed", kind=catalog_pb2.VERIFIER_KIND_EXACT)
        ),
        INVALID,
        "name",
    ),
    "no questions to register": (
        lambda world, _: world.stubs.catalog.RegisterQuestions(
            catalog_pb2.RegisterQuestionsRequest()
        ),
        INVALID,
        "questions",
    ),
    "regrading by nothing": (
        lambda world, _: world.stubs.cache.RegradeRollouts(
            cache_pb2.RegradeRolloutsRequest(policy="student", question="one")
        ),
        INVALID,
        "verifier",
    ),
    "a page token from elsewhere": (
        lambda world, _: world.stubs.catalog.ListPolicies(
            catalog_pb2.ListPoliciesRequest(page_token="nonsense")
        ),
        INVALID,
        "page_token",
    ),
    "a page token that digs deep": (
        lambda world, _: world.stubs.catalog.ListPolicies(
            catalog_pb2.ListPoliciesRequest(
                page_token=base64.urlsafe_b64encode(b"[" * 200_000).decode()
            )
        ),
        INVALID,
        "page_token",
    ),
    "a negative page": (
        lambda world, _: world.stubs.catalog.ListPolicies(
            catalog_pb2.ListPoliciesRequest(page_size=-1)
        ),
        INVALID,
        "page_size",
    ),
}


async def refused(call: Awaitable[Any], code: grpc.StatusCode, about: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = caught.value
    assert error.code() == code, error.details()
    status = rpc_status.from_call(error)
    assert status is not None
    reason_of(status)
    if code == INVALID:
        bad = error_details_pb2.BadRequest()
        assert any(detail.Unpack(bad) for detail in status.details)
        assert bad.field_violations[0].field == about
        assert bad.field_violations[0].description
    else:
        assert about in (error.details() or "")


async def test_bad_requests_are_refused_by_code_and_field_and_change_nothing(
    world: World, models: Path
) -> None:
    before = await statistics(world)
    problems = []
    for name, (call, code, about) in CASES.items():
        try:
            await refused(call(world, models), code, about)
        except AssertionError as error:
            problems.append(f"{name}: {error}")
    assert not problems, "\n".join(problems)
    assert await statistics(world) == before
    growths = await world.stubs.growth.ListGrowths(growth_pb2.ListGrowthsRequest())
    assert not growths.growths


async def test_a_position_past_the_end_is_refused(world: World) -> None:
    trajectory = await sampled(world)
    for position in (-1, trajectory.length):
        await refused(
            world.stubs.diagnosis.GetAlignment(
                diagnosis_pb2.GetAlignmentRequest(
                    node=at(trajectory.id, position), teachers=["teacher"]
                )
            ),
            INVALID,
            "node.trajectory.position",
        )


async def test_questions_are_refused_one_by_one(world: World) -> None:
    specs = [
        {"question": "q 1", "answer": "1"},
        {"question": "", "answer": "1"},
        {"question": "q 2", "answer": "see figure"},
        {"question": "q 3", "answer": ""},
        {"question": "q 4", "answer": "4"},
    ]
    response = await world.stubs.catalog.RegisterQuestions(
        catalog_pb2.RegisterQuestionsRequest(
            questions=[catalog_pb2.QuestionSpec(fields=fields) for fields in specs]
        )
    )
    assert [r.WhichOneof("result") for r in response.results] == [
        "question",
        "error",
        "error",
        "error",
        "question",
    ]
    assert [r.index for r in response.results] == [0, 1, 2, 3, 4]


async def test_a_context_whose_field_a_question_lacks_is_named(world: World) -> None:
    await world.stubs.catalog.RegisterTeacher(
        catalog_pb2.RegisterTeacherRequest(
            name="hinted", base_policy="student", context=catalog_pb2.Context(name="hint")
        )
    )
    named = {"teachers": ["teacher", "hinted"]}
    await refused(align(prefix(), **named)(world, Path()), PRECONDITION, "teachers[1]")
    await refused(grow_with(**named)(world, Path()), PRECONDITION, "teachers[1]")


async def test_a_question_longer_than_the_window_is_refused(world: World) -> None:
    await world.stubs.catalog.RegisterQuestions(
        catalog_pb2.RegisterQuestionsRequest(
            questions=[
                catalog_pb2.QuestionSpec(
                    name="long", fields={"question": "q " * 300, "answer": "1"}
                )
            ]
        )
    )
    await refused(sample(questions=["long"])(world, Path()), PRECONDITION, "256")
