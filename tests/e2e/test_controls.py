"""Control teachers, and teachers that are shown the student's own work, over a socket."""

from __future__ import annotations

import grpc
import numpy as np
import pytest
from unmask.v1 import catalog_pb2, diagnosis_pb2, growth_pb2, trajectory_pb2
from unmask_server.diagnosis import Algorithm, Loss, descent, entropy, tempered
from unmask_server.nodes.controls import FLATTENED, SHARPENED
from unmask_server.tree import TreeStore

from tests.collected import collected
from tests.e2e.conftest import World
from tests.e2e.test_bad_input import INVALID, PRECONDITION, refused
from tests.e2e.test_main_job import at, grow, growth_of, sampled, statistics

KINDS = {
    "flat": (catalog_pb2.CONTROL_FLATTENED, "student"),
    "sharp": (catalog_pb2.CONTROL_SHARPENED, "student"),
    "matched": (catalog_pb2.CONTROL_ENTROPY_MATCHED, "teacher"),
    "permuted": (catalog_pb2.CONTROL_PERMUTED, "teacher"),
}


def base_of(name: str) -> dict[str, str]:
    return {"base_policy" if name == "student" else "base_teacher": name}


async def register(world: World, **fields: object) -> catalog_pb2.Teacher:
    request = catalog_pb2.RegisterTeacherRequest(**fields)
    return (await world.stubs.catalog.RegisterTeacher(request)).teacher


@pytest.fixture
async def controlled(world: World) -> World:
    for name, (control, model) in KINDS.items():
        await register(world, name=name, control=control, **base_of(model))
    return world


async def answers(
    world: World, node: diagnosis_pb2.NodeRef, *teachers: str
) -> list[diagnosis_pb2.Alignment]:
    request = diagnosis_pb2.GetAlignmentRequest(node=node, teachers=teachers)
    return list((await world.stubs.diagnosis.GetAlignment(request)).alignments)


async def distribution(world: World, node: diagnosis_pb2.NodeRef) -> np.ndarray:
    """The student's probabilities over a node's candidates, with the tail."""
    request = diagnosis_pb2.GetNodeRequest(node=node, teachers=["teacher"])
    found = await world.stubs.diagnosis.GetNode(request)
    p = [candidate.raw_probability for candidate in found.candidates]
    return np.array([*p, max(0.0, 1.0 - sum(p))])


async def test_controls_are_registered_once_and_say_what_they_are(controlled: World) -> None:
    found = await controlled.stubs.catalog.ListTeachers(catalog_pb2.ListTeachersRequest())
    by_name = {teacher.name: teacher for teacher in found.teachers}
    for name, (control, model) in KINDS.items():
        assert by_name[name].control == control
        base = by_name[model].id if model == "teacher" else ""
        assert by_name[name].base_teacher_id == base
        again = await register(controlled, control=control, **base_of(model))
        assert again.id == by_name[name].id
    assert by_name["teacher"].control == catalog_pb2.CONTROL_UNSPECIFIED


async def test_a_control_is_what_it_says(controlled: World) -> None:
    trajectory = await sampled(controlled)
    await grow(controlled, growth_of(growth_pb2.GrowthTarget(trajectory=trajectory.id)))
    node = at(trajectory.id, 1)
    p = await distribution(controlled, node)
    flat, sharp = await answers(controlled, node, "flat", "sharp")
    for found, exponent in ((flat, FLATTENED), (sharp, SHARPENED)):
        t = p**exponent / (p**exponent).sum()
        d = descent(Algorithm(Loss.REVERSE_KL), p, t)
        assert found.descent_norm_squared == pytest.approx(float(d @ d), rel=1e-3)
    # Reverse KL towards P^a is (a - 1) times one direction.
    assert flat.cosine.median == pytest.approx(-sharp.cosine.median, abs=1e-6)


async def test_a_matched_control_has_the_teachers_entropy(controlled: World) -> None:
    trajectory = await sampled(controlled)
    node = at(trajectory.id, 1)
    alone = await answers(controlled, node, "matched")
    together = await answers(controlled, node, "teacher", "matched", "permuted")
    # The same with and without its teacher beside it, but for which tokens nobody would take.
    assert alone[0].divergence == pytest.approx(together[1].divergence, rel=1e-4)
    assert alone[0].divergence > 0
    p = await distribution(controlled, node)
    for target in (0.3, 1.2):
        assert entropy(tempered(p, target)) == pytest.approx(target, abs=1e-6)


async def test_controls_cost_no_sampling_and_no_scoring(controlled: World) -> None:
    trajectory = await sampled(controlled)
    node = at(trajectory.id, 1)
    await answers(controlled, node, "teacher")
    before = await statistics(controlled)
    found = await answers(controlled, node, "teacher", *KINDS)
    assert len(found) == 5
    # All from what the student and the teacher said.
    assert await statistics(controlled) == before


async def test_a_trajectory_is_shown_with_its_controls(controlled: World) -> None:
    trajectory = await sampled(controlled)
    await grow(controlled, growth_of(growth_pb2.GrowthTarget(trajectory=trajectory.id)))

    async def stream(*teachers: str) -> list[list[diagnosis_pb2.Alignment]]:
        request = diagnosis_pb2.StreamTrajectoryAlignmentsRequest(
            trajectory=trajectory.id, teachers=teachers
        )
        answers = controlled.stubs.diagnosis.StreamTrajectoryAlignments(request)
        return [list(answer.alignments) async for answer in answers]

    await stream("teacher")
    before = await statistics(controlled)
    assert before.distributions_scored > 0
    # A control may come before the teacher that it is of, or without it.
    found = await stream(*KINDS, "teacher")
    assert [len(alignments) for alignments in found] == [5] * trajectory.length
    assert len(await stream("matched")) == trajectory.length
    assert await statistics(controlled) == before


async def test_controls_are_compared_like_any_other_teacher(controlled: World) -> None:
    trajectory = await sampled(controlled)
    await grow(
        controlled,
        growth_of(
            growth_pb2.GrowthTarget(trajectory=trajectory.id),
            allocation=growth_pb2.ALLOCATION_ADAPTIVE,
            teachers=["teacher", *KINDS],
            rollouts_per_node=0,
            budget=growth_pb2.Budget(rollouts=400),
        ),
    )
    request = diagnosis_pb2.SummarizeAlignmentsRequest(
        trajectories=[trajectory.id], teachers=["teacher", *KINDS]
    )
    found = await controlled.stubs.diagnosis.SummarizeAlignments(request)
    assert len(found.summaries) == 5
    assert len(found.comparisons) == 10
    assert all(pair.HasField("gain_per_unit_step") for pair in found.comparisons)
    again = await controlled.stubs.diagnosis.SummarizeAlignments(request)
    assert again == found


async def test_a_control_of_a_teacher_without_a_context_has_no_signal(controlled: World) -> None:
    await register(controlled, name="self", base_policy="student")
    for name, kind in (("m", "matched"), ("q", "permuted")):
        await register(controlled, name=name, control=KINDS[kind][0], base_teacher="self")
    trajectory = await sampled(controlled)
    for found in await answers(controlled, at(trajectory.id, 1), "m", "q"):
        assert found.status == diagnosis_pb2.ALIGNMENT_STATUS_NO_SIGNAL


@pytest.mark.parametrize(
    ("fields", "code", "about"),
    [
        ({"control": 99, "base_policy": "student"}, INVALID, "control"),
        ({"control": 4}, INVALID, "base_teacher"),
        ({"control": 4, "base_policy": "student"}, INVALID, "base_teacher"),
        ({"control": 1}, INVALID, "base_policy"),
        ({"control": 1, "model": "/models/student"}, INVALID, "model"),
        ({"control": 1, "base_policy": "nobody"}, grpc.StatusCode.NOT_FOUND, "nobody"),
        ({"control": 3, "base_teacher": "matched"}, INVALID, "base_teacher"),
        (
            {"control": 1, "base_policy": "student", "context": {"name": "answer"}},
            INVALID,
            "context",
        ),
        (
            {"control": 1, "base_policy": "student", "endpoints": ["http://x:1"]},
            INVALID,
            "endpoints",
        ),
    ],
)
async def test_what_is_no_control_is_refused(
    controlled: World, fields: dict, code: grpc.StatusCode, about: str
) -> None:
    request = catalog_pb2.RegisterTeacherRequest(**fields)
    await refused(controlled.stubs.catalog.RegisterTeacher(request), code, about)


async def test_a_control_has_no_generations_of_its_own(controlled: World) -> None:
    trajectory = await sampled(controlled)
    request = diagnosis_pb2.GetAlignmentRequest(
        node=at(trajectory.id, 1),
        teachers=["teacher", "matched"],
        algorithms=[diagnosis_pb2.Algorithm(loss=diagnosis_pb2.LOSS_MINILLM)],
    )
    await refused(controlled.stubs.diagnosis.GetAlignment(request), INVALID, "teachers[1]")


async def two_correct(world: World) -> list[trajectory_pb2.Trajectory]:
    """Trajectories of question two, whose answer the student meets now and then."""
    request = trajectory_pb2.SampleTrajectoriesRequest(
        policy="student", questions=["two"], count=200, seed=3
    )
    found = (await collected(world.stubs.trajectory.SampleTrajectories(request))).trajectories
    stopped = [
        t for t in found if t.reward == 1 and t.finish_reason == trajectory_pb2.FINISH_REASON_STOP
    ]
    distinct = list({tuple(token.id for token in t.tokens): t for t in stopped}.values())
    assert len(distinct) >= 2
    # The one that is shown first: the first that was stored.
    store = TreeStore(world.app.database)
    tree = store.open_tree(distinct[0].policy_id, distinct[0].question_id)
    order = [r.tokens for r in store.iter_rollouts(tree.id, 0, 1000)]
    return sorted(distinct, key=lambda t: order.index(tuple(token.id for token in t.tokens)))


async def test_a_teacher_is_shown_the_students_own_correct_rollout(world: World) -> None:
    teacher = await register(
        world, name="own", base_policy="student", context=catalog_pb2.Context(name="own_correct")
    )
    asked = catalog_pb2.PreviewPromptRequest(question="two", policy="student", teacher="own")
    preview = world.stubs.catalog.PreviewPrompt
    await refused(preview(asked), PRECONDITION, "sample trajectories first")
    first, second, *_ = await two_correct(world)
    shown = await preview(asked)
    assert first.text.strip() in shown.teacher.text
    assert "A correct solution" in shown.teacher.text
    assert list(shown.teacher.tokens) != list(shown.policy.tokens)
    # Whoever asks, and however the tree grows, it is the same one.
    await grow(world, growth_of(growth_pb2.GrowthTarget(trajectory=second.id)))
    assert await preview(asked) == shown
    bare = catalog_pb2.PreviewPromptRequest(question="two", teacher=teacher.id)
    await refused(preview(bare), INVALID, "policy")


async def test_what_is_too_long_to_show_is_refused_and_not_cut(controlled: World) -> None:
    # The student's own rollout again and again, beyond the 256 tokens of the model.
    long = "{{ question }}" + " {{ own_correct }}" * 300
    context = catalog_pb2.Context(name="drill", template=long)
    await register(controlled, name="drilled", base_policy="student", context=context)
    _, second, *_ = await two_correct(controlled)
    for teachers in (["drilled"], ["flat", "matched", "permuted", "drilled"]):
        request = diagnosis_pb2.GetAlignmentRequest(node=at(second.id, 0), teachers=teachers)
        await refused(
            controlled.stubs.diagnosis.GetAlignment(request),
            PRECONDITION,
            f"teachers[{len(teachers) - 1}]: ",
        )
    asked = catalog_pb2.PreviewPromptRequest(question="two", policy="student", teacher="drilled")
    await refused(controlled.stubs.catalog.PreviewPrompt(asked), PRECONDITION, "256")


async def test_what_is_shown_is_left_out_of_the_estimates_at_its_own_nodes(world: World) -> None:
    await register(
        world, name="own", base_policy="student", context=catalog_pb2.Context(name="own_correct")
    )
    first, second, *_ = await two_correct(world)
    await grow(world, growth_of(growth_pb2.GrowthTarget(trajectory=second.id)))

    async def rollouts(trajectory: str, position: int, teacher: str) -> int:
        request = diagnosis_pb2.GetNodeRequest(node=at(trajectory, position), teachers=[teacher])
        return (await world.stubs.diagnosis.GetNode(request)).node.rollouts

    # At the root of another trajectory: everything but its own rollout, and now the one shown.
    usual = await rollouts(second.id, 0, "self-answer")
    assert await rollouts(second.id, 0, "own") == usual - 1
    # Where they have parted, nothing was shown.
    shared = next(
        (i for i, (a, b) in enumerate(zip(first.tokens, second.tokens, strict=False)) if a != b),
        min(first.length, second.length),
    )
    for t in range(second.length):
        # What an end token leads to is known, whoever has come there.
        counted = t <= shared and t < first.length and first.tokens[t].id != 0
        expected = await rollouts(second.id, t, "self-answer") - counted
        assert await rollouts(second.id, t, "own") == expected
    # A generation is not shown itself: at its own nodes it is another one.
    usual = await rollouts(first.id, 0, "self-answer")
    assert await rollouts(first.id, 0, "own") == usual - 1


async def test_groups_are_summarised_and_compared(controlled: World) -> None:
    request = trajectory_pb2.SampleTrajectoriesRequest(
        policy="student", questions=["one", "two"], count=3, seed=7
    )
    found = (await collected(controlled.stubs.trajectory.SampleTrajectories(request))).trajectories
    for i, trajectory in enumerate(found):
        target = growth_pb2.GrowthTarget(trajectory=trajectory.id)
        await grow(controlled, growth_of(target, request_id=f"g{i}", rollouts_per_node=16))
    ids = [trajectory.id for trajectory in found]
    teachers = ["teacher", "matched"]

    def asked(*groups: list[str]) -> diagnosis_pb2.CompareGroupsRequest:
        return diagnosis_pb2.CompareGroupsRequest(
            groups=[
                diagnosis_pb2.TrajectoryGroup(name="abc"[i], trajectories=group)
                for i, group in enumerate(groups)
            ],
            teachers=teachers,
        )

    compare = controlled.stubs.diagnosis.CompareGroups
    answer = await compare(asked(ids[::2], ids[1::2]))
    assert answer == await compare(asked(ids[::2], ids[1::2]))
    assert [group.name for group in answer.groups] == ["a", "b"]
    alone = await controlled.stubs.diagnosis.SummarizeAlignments(
        diagnosis_pb2.SummarizeAlignmentsRequest(trajectories=ids[::2], teachers=teachers)
    )
    for mine, theirs in zip(answer.groups[0].summaries, alone.summaries, strict=True):
        assert (mine.nodes, mine.scored, mine.flat) == (theirs.nodes, theirs.scored, theirs.flat)
    base, control = (summary.teacher_id for summary in alone.summaries)
    named = [(d.teacher_id, d.less_teacher_id) for d in answer.differences]
    assert named == [(base, ""), (control, ""), (base, control)]
    gain = [d.gain_per_unit_step.median for d in answer.differences]
    assert gain[2] == pytest.approx(gain[0] - gain[1], abs=0.2)
    for groups, field in (
        ([ids], "groups"),
        ([ids, []], "groups[1].trajectories"),
        ([ids, ids[:1]], "groups[1].trajectories"),
    ):
        await refused(compare(asked(*groups)), INVALID, field)
    twice = asked(ids[:1], ids[1:])
    twice.groups[1].name = "a"
    await refused(compare(twice), INVALID, "groups")
