"""Teachers of whom only stored log-probabilities are known, over a socket."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from transformers import AutoModelForCausalLM
from unmask.v1 import catalog_pb2, diagnosis_pb2, growth_pb2, trajectory_pb2
from unmask_server.api.given_distributions import MAX_DISTRIBUTIONS
from unmask_server.nodes.stored import MAX_LISTED

from tests.e2e.conftest import World
from tests.e2e.test_bad_input import INVALID, PRECONDITION, refused
from tests.e2e.test_controls import register, two_correct
from tests.e2e.test_main_job import at, grow, growth_of, sampled, statistics
from tests.tiny import WORDS

EXISTS = grpc.StatusCode.ALREADY_EXISTS
NOT_COVERED = diagnosis_pb2.ALIGNMENT_STATUS_NOT_COVERED
K = 8
VOCAB = len(WORDS)

REVERSE_KL = diagnosis_pb2.Algorithm(loss=diagnosis_pb2.LOSS_REVERSE_KL)
FORWARD_KL = diagnosis_pb2.Algorithm(loss=diagnosis_pb2.LOSS_FORWARD_KL)
JSD = diagnosis_pb2.Algorithm(loss=diagnosis_pb2.LOSS_JSD, beta=0.3)
LOSSES = (REVERSE_KL, FORWARD_KL, JSD)


def top_k(algorithm: diagnosis_pb2.Algorithm) -> diagnosis_pb2.Algorithm:
    """The same over the teacher's K likeliest tokens and a bucket of the others."""
    result = diagnosis_pb2.Algorithm()
    result.CopyFrom(algorithm)
    result.top_k, result.top_k_of = K, diagnosis_pb2.TOP_K_OF_TEACHER
    return result


async def stored(world: World, name: str = "filed") -> catalog_pb2.Teacher:
    return await register(world, name=name, stored=f"file of {name}", policies=["student"])


async def put(world: World, teacher: str, *rows: dict[str, Any]) -> tuple[int, int]:
    request = catalog_pb2.PutTeacherDistributionsRequest(
        teacher=teacher, jsonl="\n".join(map(json.dumps, rows)).encode()
    )
    found = await world.stubs.catalog.PutTeacherDistributions(request)
    return found.added, found.known


async def said(
    world: World, models: Path, trajectory: trajectory_pb2.Trajectory, k: int = K
) -> list[dict[str, Any]]:
    """What the model of `teacher` says along a trajectory, by transformers itself."""
    asked = catalog_pb2.PreviewPromptRequest(teacher="teacher", question=trajectory.question_id)
    prompt = list((await world.stubs.catalog.PreviewPrompt(asked)).teacher.tokens)
    tokens = [token.id for token in trajectory.tokens]
    model = AutoModelForCausalLM.from_pretrained(models / "teacher", dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1, :VOCAB]
    top = torch.log_softmax(logits.double(), dim=-1).topk(k)
    return [
        {"trajectory": trajectory.id, "position": t, "ids": ids, "logprobs": logprobs}
        for t, (ids, logprobs) in enumerate(
            zip(top.indices.tolist(), top.values.tolist(), strict=True)
        )
    ]


async def answers(
    world: World,
    trajectory: str,
    teachers: list[str],
    algorithms: tuple[diagnosis_pb2.Algorithm, ...] = LOSSES,
) -> list[list[diagnosis_pb2.Alignment]]:
    request = diagnosis_pb2.StreamTrajectoryAlignmentsRequest(
        trajectory=trajectory, teachers=teachers, algorithms=algorithms
    )
    stream = world.stubs.diagnosis.StreamTrajectoryAlignments(request)
    return [list(answer.alignments) async for answer in stream]


async def grown(world: World) -> trajectory_pb2.Trajectory:
    """A correct trajectory, with many rollouts at each of its nodes."""
    trajectory = max(await two_correct(world), key=lambda one: one.length)
    assert trajectory.length > 1
    target = growth_pb2.GrowthTarget(trajectory=trajectory.id)
    await grow(world, growth_of(target, rollouts_per_node=400))
    return trajectory


def assert_agree(
    one: diagnosis_pb2.Alignment,
    other: diagnosis_pb2.Alignment,
    within: float = 1e-5,
    share: float = 0.0,
) -> None:
    """Within so much, and so large a share of an interval's width."""
    assert one.status == other.status
    for name in ("cosine", "gain", "advantage"):
        assert one.HasField(name) == other.HasField(name)
        if one.HasField(name):
            a, b = getattr(one, name), getattr(other, name)
            near = within + share * (b.high - b.low)
            for part in ("median", "low", "high"):
                assert getattr(a, part) == pytest.approx(getattr(b, part), abs=near)
    assert one.descent_norm_squared == pytest.approx(other.descent_norm_squared, abs=1e-5)


async def test_stored_and_live_agree(world: World, models: Path) -> None:
    trajectory = await grown(world)
    await stored(world)
    await put(world, "filed", *await said(world, models, trajectory))
    before = await statistics(world)
    # What the file does not list counts as one token, and so it does in these losses over a live
    # teacher's K likeliest. In one request, so that draws are the same.
    both = await answers(world, trajectory.id, ["teacher", "filed"], (*LOSSES, *map(top_k, LOSSES)))
    scored = 0
    for found in both:
        live, filed = found[3:6], found[6:9]
        for mine, theirs in zip(filed, live, strict=True):
            if mine.teacher_covered_mass < 0.9:
                assert mine.status == diagnosis_pb2.ALIGNMENT_STATUS_LOW_COVERAGE
                mine.status = theirs.status
            # Of the teacher itself, whose other tokens only the live one knows.
            mine.ClearField("advantage")
            theirs.ClearField("advantage")
            # The bucket is what float32 leaves of 1: the smaller, the less is known of its ratio.
            within = max(1e-5, 1e-7 / (1.0 - mine.teacher_covered_mass))
            # What the live one prefers of the others tells a little of what it knows of success.
            assert_agree(mine, theirs, within, share=0.15)
            scored += mine.HasField("cosine")
    assert scored
    # Both were answered from the same rollouts.
    assert (await statistics(world)).rollouts == before.rollouts


async def test_a_whole_vocabulary_is_the_teacher_itself(world: World, models: Path) -> None:
    trajectory = await grown(world)
    await stored(world)
    await put(world, "filed", *await said(world, models, trajectory, k=VOCAB))
    found = await answers(world, trajectory.id, ["teacher", "filed"])
    assert any(alignment.HasField("cosine") for at in found for alignment in at)
    for alignments in found:
        for live, filed in zip(alignments[:3], alignments[3:], strict=True):
            assert_agree(filed, live)
            assert filed.divergence == pytest.approx(live.divergence, abs=1e-5)
            assert filed.teacher_covered_mass == pytest.approx(1.0, abs=1e-6)


async def test_two_teachers_and_a_file_on_one_set_of_nodes(world: World, models: Path) -> None:
    trajectory = await grown(world)
    await stored(world)
    rows = await said(world, models, trajectory)
    # The file lacks the last node.
    await put(world, "filed", *rows[:-1])
    for name, control in (("matched", 3), ("permuted", 4)):
        await register(world, name=name, control=control, base_teacher="filed")
    teachers = ["teacher", "self-answer", "filed", "matched", "permuted"]
    found = await answers(world, trajectory.id, teachers, (REVERSE_KL,))
    alone = await answers(world, trajectory.id, teachers[:2], (REVERSE_KL,))
    for row, at_node in zip(rows[:-1], found[:-1], strict=True):
        listed = sum(map(math.exp, row["logprobs"]))
        assert all(a.status != NOT_COVERED for a in at_node)
        for alignment in at_node[2:]:
            assert alignment.teacher_covered_mass == pytest.approx(listed, abs=1e-6)
    for alignment in found[-1][2:]:
        assert alignment.status == NOT_COVERED
        for name in ("cosine", "gain", "advantage", "descent_norm_squared", "divergence",
                     "teacher_covered_mass", "probability_best"):  # fmt: skip
            assert not alignment.HasField(name)
    # The others have the same numbers there, whoever is beside them.
    for one, other in zip(found[-1][:2], alone[-1], strict=True):
        assert (one.status, one.gain, one.cosine) == (other.status, other.gain, other.cosine)
    summary = await world.stubs.diagnosis.SummarizeAlignments(
        diagnosis_pb2.SummarizeAlignmentsRequest(trajectories=[trajectory.id], teachers=teachers)
    )
    assert [row.not_covered for row in summary.summaries] == [0, 0, 1, 1, 1]
    for row in summary.summaries:
        parts = (row.scored, row.flat, row.no_signal, row.unbounded, row.no_data, row.not_covered)
        assert sum(parts) == row.nodes == trajectory.length
    assert len(summary.comparisons) == 10


async def test_an_answer_is_another_one_when_its_node_is_put(world: World, models: Path) -> None:
    trajectory = await grown(world)
    await stored(world)
    rows = await said(world, models, trajectory)
    request = diagnosis_pb2.GetAlignmentRequest(node=at(trajectory.id, 0), teachers=["filed"])
    ask = world.stubs.diagnosis.GetAlignment
    assert (await ask(request)).alignments[0].status == NOT_COVERED
    assert (await ask(request)).alignments[0].status == NOT_COVERED
    await put(world, "filed", rows[0])
    found = await ask(request)
    assert found.alignments[0].status != NOT_COVERED
    assert await ask(request) == found


async def test_a_file_knows_questions_and_prefixes_too(world: World, models: Path) -> None:
    trajectory = await grown(world)
    row = (await said(world, models, trajectory))[1]
    await stored(world)
    values = {"ids": row["ids"], "logprobs": row["logprobs"]}
    prefix = [token.id for token in trajectory.tokens[:1]]
    by_prefix = {"question": trajectory.question_id, "prefix": prefix, **values}
    assert await put(world, "filed", by_prefix) == (1, 0)
    # The same node, in another order.
    shuffled = {**row, "ids": row["ids"][::-1], "logprobs": row["logprobs"][::-1]}
    assert await put(world, "filed", shuffled, by_prefix) == (0, 2)
    found = await answers(world, trajectory.id, ["filed"], (REVERSE_KL,))
    covered = [at_node[0].status != NOT_COVERED for at_node in found]
    assert covered == [i == 1 for i in range(trajectory.length)]


async def test_nothing_is_spent_where_the_file_says_nothing(world: World, models: Path) -> None:
    trajectory = await sampled(world)
    await stored(world)
    await put(world, "filed", (await said(world, models, trajectory))[0])
    predicted = await world.stubs.growth.PredictGrowth(
        growth_pb2.PredictGrowthRequest(
            targets=[growth_pb2.GrowthTarget(trajectory=trajectory.id)],
            teachers=["filed"],
            precision=growth_pb2.Precision(statistic=growth_pb2.STATISTIC_COSINE, half_width=0.2),
        )
    )
    everywhere = await world.stubs.growth.PredictGrowth(
        growth_pb2.PredictGrowthRequest(
            targets=[growth_pb2.GrowthTarget(trajectory=trajectory.id)],
            teachers=["teacher"],
            precision=growth_pb2.Precision(statistic=growth_pb2.STATISTIC_COSINE, half_width=0.2),
        )
    )
    assert predicted.forecast.rollouts.median < everywhere.forecast.rollouts.median
    assert predicted.nodes == everywhere.nodes == trajectory.length
    done = await grow(
        world,
        growth_of(
            growth_pb2.GrowthTarget(trajectory=trajectory.id),
            allocation=growth_pb2.ALLOCATION_ADAPTIVE,
            teachers=["filed", "teacher"],
        ),
    )
    assert done.state == growth_pb2.GROWTH_STATE_SUCCEEDED


async def test_a_node_of_which_nothing_is_stored_is_no_node_to_grow(
    world: World, models: Path
) -> None:
    trajectory = max(await two_correct(world), key=lambda one: one.length)
    assert trajectory.length > 1
    await stored(world)
    await put(world, "filed", (await said(world, models, trajectory))[0])
    target = growth_pb2.GrowthTarget(trajectory=trajectory.id)
    for i, (teachers, algorithms, skipped) in enumerate(
        (
            (["filed"], [REVERSE_KL], trajectory.length - 1),
            (["filed", "teacher"], [REVERSE_KL], 0),
            (["filed"], [REVERSE_KL, diagnosis_pb2.Algorithm(loss=diagnosis_pb2.LOSS_GRPO)], 0),
        )
    ):
        done = await grow(
            world,
            growth_of(
                target,
                request_id=f"g{i}",
                allocation=growth_pb2.ALLOCATION_EQUAL,
                teachers=teachers,
                algorithms=algorithms,
            ),
        )
        assert (done.nodes, done.nodes_flat) == (trajectory.length, skipped)


LN = math.log(0.25)
ROW = {"question": "one", "ids": [1, 2, 3], "logprobs": [LN, LN, LN]}


@pytest.mark.parametrize(
    ("change", "code", "about"),
    [
        ({"logprobs": [LN, LN, math.nan]}, INVALID, "logprobs[2]"),
        ({"logprobs": [LN, 0.1, LN]}, INVALID, "logprobs[1]"),
        ({"logprobs": [LN, math.inf, LN]}, INVALID, "logprobs[1]"),
        ({"logprobs": [-0.5, -0.5, -0.5]}, INVALID, "logprobs"),
        ({"logprobs": [LN, LN]}, INVALID, "logprobs"),
        ({"ids": [1, 2, 1]}, INVALID, "ids"),
        ({"ids": [1, 2, VOCAB]}, INVALID, "ids[2]"),
        ({"ids": [1, 2, -1]}, INVALID, "ids[2]"),
        ({"ids": [], "logprobs": []}, INVALID, "ids"),
        ({"ids": [1, 2, "3"]}, INVALID, "ids"),
        ({"ids": list(range(VOCAB)), "logprobs": [-9.0] * VOCAB}, INVALID, "logprobs"),
        ({"prefix": [VOCAB]}, INVALID, "prefix[0]"),
        ({"question": "nobody"}, grpc.StatusCode.NOT_FOUND, "nobody"),
        ({"question": ""}, INVALID, "question"),
        ({"position": 1}, INVALID, "position"),
        ({"trajectory": "trj-0"}, INVALID, "trajectory"),
        ({"token": 1}, INVALID, "token"),
        ({"logprobs": [LN, LN, LN - 1]}, EXISTS, "jsonl[line 2]"),
    ],
)
async def test_what_is_no_distribution_is_refused_and_nothing_is_put(
    world: World, change: dict[str, Any], code: grpc.StatusCode, about: str
) -> None:
    await stored(world)
    # Beside a good line: one of the same node where the trouble is that they differ.
    good = ROW if code is EXISTS else {**ROW, "question": "two"}
    field = f"jsonl[line 2].{about}" if code is INVALID else about
    await refused(put(world, "filed", good, {**ROW, **change}), code, field)
    assert await put(world, "filed", ROW, {**ROW, "question": "two"}) == (2, 0)


async def test_a_node_that_is_there_never_changes(world: World) -> None:
    await stored(world)
    assert await put(world, "filed", ROW) == (1, 0)
    other = {**ROW, "logprobs": [LN, LN, LN - 1]}
    await refused(put(world, "filed", {**ROW, "question": "two"}, other), EXISTS, "line 2")
    await refused(put(world, "filed", {**ROW, "ids": [1, 2, 4]}), EXISTS, "line 1")
    # Nothing of a refused request was kept.
    assert await put(world, "filed", {**ROW, "question": "two"}, ROW) == (1, 1)
    # Another teacher has nodes of its own.
    await stored(world, "another")
    assert await put(world, "another", other) == (1, 0)


async def test_a_trajectory_of_other_tokens_or_a_position_beyond_it_is_refused(
    world: World, models: Path
) -> None:
    trajectory = await sampled(world)
    await stored(world)
    there = {"trajectory": trajectory.id, "ids": [1], "logprobs": [-0.5]}
    for position in (-1, trajectory.length):
        row = {**there, "position": position}
        await refused(put(world, "filed", row), INVALID, "jsonl[line 1].position")
    nobody = {**there, "trajectory": "trj-0"}
    await refused(put(world, "filed", nobody), grpc.StatusCode.NOT_FOUND, "trj-0")
    await world.stubs.catalog.RegisterPolicy(
        catalog_pb2.RegisterPolicyRequest(
            name="stranger", model=str(models / "other"), max_new_tokens=6
        )
    )
    other = await world.stubs.trajectory.SubmitTrajectory(
        trajectory_pb2.SubmitTrajectoryRequest(policy="stranger", question="one", text="3")
    )
    row = {**there, "trajectory": other.trajectory.id}
    await refused(put(world, "filed", row), PRECONDITION, "another tokenizer")


async def test_lines_are_named_as_they_are_in_the_file(world: World) -> None:
    await stored(world)
    call = world.stubs.catalog.PutTeacherDistributions
    for jsonl, about in (
        (b"\n{", "jsonl[line 42]"),
        (b"[]", "jsonl[line 41]"),
        (b"\n \n", "jsonl"),
        (b"\xff", "jsonl"),
    ):
        request = catalog_pb2.PutTeacherDistributionsRequest(
            teacher="filed", jsonl=jsonl, first_line=41
        )
        await refused(call(request), INVALID, about)
    await refused(
        call(catalog_pb2.PutTeacherDistributionsRequest(teacher="filed")), INVALID, "distributions"
    )
    await refused(call(catalog_pb2.PutTeacherDistributionsRequest()), INVALID, "teacher")
    for teacher in ("teacher", "self-answer"):
        await refused(put(world, teacher, ROW), PRECONDITION, "no stored teacher")
    nul = {**ROW, "question": "on\0e"}
    await refused(put(world, "filed", nul), INVALID, "jsonl[line 1].question")
    many = [ROW] * (MAX_DISTRIBUTIONS + 1)
    await refused(put(world, "filed", *many), INVALID, "jsonl")
    long = {**ROW, "ids": list(range(MAX_LISTED + 1))}
    await refused(put(world, "filed", long), INVALID, "jsonl[line 1].ids")


@pytest.mark.parametrize(
    ("fields", "code", "about"),
    [
        ({}, INVALID, "policies"),
        ({"policies": ["student"], "model": "/models/student"}, INVALID, "model"),
        ({"policies": ["student"], "context": {"name": "answer"}}, INVALID, "context"),
        ({"policies": ["student"], "control": 1}, INVALID, "control"),
        ({"policies": ["student", "stranger"]}, PRECONDITION, "policies[1]"),
        ({"policies": ["student"], "stored": "x" * 201}, INVALID, "stored"),
    ],
)
async def test_what_is_no_stored_teacher_is_refused(
    world: World, models: Path, fields: dict[str, Any], code: grpc.StatusCode, about: str
) -> None:
    await world.stubs.catalog.RegisterPolicy(
        catalog_pb2.RegisterPolicyRequest(
            name="stranger", model=str(models / "other"), max_new_tokens=6
        )
    )
    request = catalog_pb2.RegisterTeacherRequest(**{"stored": "a file", **fields})
    await refused(world.stubs.catalog.RegisterTeacher(request), code, about)


async def test_what_a_file_cannot_tell_is_refused(world: World) -> None:
    trajectory = await sampled(world)
    teacher = await stored(world)
    assert (teacher.stored, teacher.HasField("model"), teacher.HasField("context")) == (
        "file of filed", False, False,
    )  # fmt: skip
    again = await register(world, stored="file of filed", policies=["student"])
    assert again == teacher
    await register(world, name="permuted", control=4, base_teacher="filed")
    warm = diagnosis_pb2.Algorithm(loss=diagnosis_pb2.LOSS_REVERSE_KL, temperature=2.0)
    for name in ("filed", "permuted"):
        for algorithm, code, about in (
            (warm, PRECONDITION, "algorithms[0].temperature: teachers[1]"),
            (diagnosis_pb2.Algorithm(loss=diagnosis_pb2.LOSS_MINILLM), INVALID, "teachers[1]"),
            (
                diagnosis_pb2.Algorithm(loss=diagnosis_pb2.LOSS_JSD, student_share=0.5),
                INVALID,
                "teachers[1]",
            ),
        ):
            request = diagnosis_pb2.GetAlignmentRequest(
                node=at(trajectory.id, 0), teachers=["teacher", name], algorithms=[algorithm]
            )
            await refused(world.stubs.diagnosis.GetAlignment(request), code, about)
        growth = growth_of(
            growth_pb2.GrowthTarget(trajectory=trajectory.id), teachers=[name], algorithms=[warm]
        )
        await refused(world.stubs.growth.StartGrowth(growth), PRECONDITION, "temperature")
        preview = catalog_pb2.PreviewPromptRequest(question="one", teacher=name)
        await refused(world.stubs.catalog.PreviewPrompt(preview), INVALID, "teacher")
