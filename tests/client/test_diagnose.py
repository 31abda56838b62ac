"""The parts of `unmask diagnose` that need no model: choosing, attaching, wording."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest
import unmask
from unmask.cli import study
from unmask.cli.report import sentence
from unmask.v1 import catalog_pb2, diagnosis_pb2, growth_pb2, trajectory_pb2

from tests.client.making import interval
from tests.client.scripted import ScriptedServer


def plan(**changes: Any) -> study.Plan:
    defaults: dict[str, Any] = {
        "questions": "q.jsonl", "student": "s", "teachers": (("big", "b"),),
        "contexts": ("answer",), "losses": ("reverse_kl",), "samples": 2, "rollouts_per_node": 8,
        "max_rollouts": None, "half_width": None, "statistic": "cosine", "allocation": "adaptive",
        "temperature": 1.0, "prompt_template": "",
        "stop_texts": (), "max_questions": None, "max_new_tokens": 0, "seed": 0, "verifier": "",
        "top_k": 0,
    }  # fmt: skip
    return study.Plan(**defaults | changes)


def trajectory(name: str, question: str, reward: float) -> trajectory_pb2.Trajectory:
    return trajectory_pb2.Trajectory(id=name, question_id=question, reward=reward, length=10)


SUBJECTS = study.Subjects(
    catalog_pb2.Policy(id="pol-1"),
    {"tea-1": "big", "tea-2": "self+answer"},
    [catalog_pb2.Question(id="que-1")],
)


@pytest.mark.parametrize(
    ("given", "pairs"),
    [
        (
            [("a", "q1", 1), ("b", "q2", 1), ("c", "q2", 0), ("d", "q3", 0), ("e", "q3", 1)],
            [["b", "c"], ["e", "d"]],
        ),
        ([("a", "q1", 1), ("b", "q2", 0), ("c", "q2", 0)], [["a", "b"]]),
        ([("a", "q1", 0), ("b", "q2", 0.5)], [["a"]]),
        ([("a", "q1", 1)], [["a"]]),
        ([], [[]]),
    ],
)
def test_a_right_and_a_wrong_answer_to_one_question_are_shown_if_there_are(
    given: list[tuple[str, str, float]], pairs: list[list[str]]
) -> None:
    found = study.pairs(trajectory(*one) for one in given)
    assert [[t.id for t in pair] for pair in found] == pairs


def started(server: ScriptedServer, asked: study.Plan, client: unmask.Client) -> Any:
    study.start_growth(client, SUBJECTS, asked, [trajectory("trj-1", "que-1", 1)])
    return server.requests("StartGrowth")[-1]


def test_the_same_question_asks_for_the_same_growth(
    server: ScriptedServer, client: unmask.Client
) -> None:
    running = growth_pb2.Growth(id="gro-1", state=growth_pb2.GROWTH_STATE_RUNNING)
    server.answer("StartGrowth", growth_pb2.StartGrowthResponse(growth=running))
    first = started(server, plan(), client)
    assert started(server, plan(), client) == first
    assert first.budget.rollouts == 80
    assert list(first.teachers) == ["tea-1", "tea-2"]
    others = [
        started(server, plan(**change), client).request_id
        for change in ({"rollouts_per_node": 9}, {"max_rollouts": 5}, {"top_k": 3})
    ]
    assert len({first.request_id, *others}) == 4


def test_a_precision_alone_has_room_and_an_end(
    server: ScriptedServer, client: unmask.Client
) -> None:
    running = growth_pb2.Growth(id="gro-1", state=growth_pb2.GROWTH_STATE_RUNNING)
    server.answer("StartGrowth", growth_pb2.StartGrowthResponse(growth=running))
    asked = started(server, plan(rollouts_per_node=0, half_width=0.2, losses=("opd",)), client)
    assert asked.rollouts_per_node == 0
    assert asked.precision.half_width == 0.2
    assert asked.budget.rollouts == 2560
    assert asked.allocation == growth_pb2.ALLOCATION_ADAPTIVE
    assert asked.algorithms[0].form == diagnosis_pb2.FORM_SAMPLED
    plain = started(server, plan(), client)
    assert not plain.HasField("precision")
    assert plain.request_id != asked.request_id


def test_a_growth_that_was_given_up_is_followed_by_a_new_one(
    server: ScriptedServer, client: unmask.Client
) -> None:
    states = [
        growth_pb2.GROWTH_STATE_FAILED,
        growth_pb2.GROWTH_STATE_CANCELLED,
        growth_pb2.GROWTH_STATE_QUEUED,
    ]

    def start(request: Any, context: grpc.ServicerContext) -> growth_pb2.StartGrowthResponse:
        return growth_pb2.StartGrowthResponse(
            growth=growth_pb2.Growth(
                id=request.request_id, state=states[len(server.requests("StartGrowth")) - 1]
            )
        )

    server.answer("StartGrowth", start)
    handle = study.start_growth(client, SUBJECTS, plan(), [trajectory("trj-1", "que-1", 1)])
    ids = [request.request_id for request in server.requests("StartGrowth")]
    assert len(set(ids)) == 3
    assert handle.id == ids[-1]


def test_a_teacher_whose_name_is_taken_is_registered_without_one(
    server: ScriptedServer, client: unmask.Client, tmp_path: Path
) -> None:
    def register(request: Any, context: grpc.ServicerContext) -> Any:
        if request.name == "big":
            context.abort(grpc.StatusCode.ALREADY_EXISTS, "the name big belongs to tea-7")
        made_from = request.model or request.base_policy
        teacher = catalog_pb2.Teacher(id=f"tea-{made_from}-{request.context.name}")
        return catalog_pb2.RegisterTeacherResponse(teacher=teacher)

    def questions(request: Any, context: grpc.ServicerContext) -> Any:
        results = [
            catalog_pb2.RegisteredQuestion(index=1, question=catalog_pb2.Question(id="que-1")),
            catalog_pb2.RegisteredQuestion(
                index=3, error=catalog_pb2.QuestionError(message="no answer")
            ),
            catalog_pb2.RegisteredQuestion(index=4, question=catalog_pb2.Question(id="que-1")),
        ]
        return catalog_pb2.RegisterQuestionsResponse(results=results)

    server.answer(
        "RegisterPolicy",
        catalog_pb2.RegisterPolicyResponse(policy=catalog_pb2.Policy(id="pol-1")),
    )
    server.answer("RegisterTeacher", register)
    server.answer("RegisterQuestions", questions)
    file = tmp_path / "q.jsonl"
    file.write_bytes(b"one\n\nthree\nfour\nfive\n")
    subjects = study.register(client, plan(questions=str(file), max_questions=3))
    assert subjects.labels == {"tea-b-": "big", "tea-pol-1-answer": "self+answer"}
    assert [question.id for question in subjects.questions] == ["que-1"]
    assert subjects.remarks == [f"{file}:3: no answer"]
    (request,) = server.requests("RegisterQuestions")
    assert request.jsonl == b"one\n\nthree\nfour\n"
    with pytest.raises(ValueError, match="--max-questions: 1 questions with 1001 samples"):
        study.check_size(subjects.questions, plan(samples=1001))


@pytest.mark.parametrize(
    ("gain", "counts", "words"),
    [
        (interval(0.2, 0.1), {"scored": 5}, "pushes towards success"),
        (interval(-0.2, 0.1), {"scored": 5}, "pushes away from success"),
        (interval(0.05, 0.1), {"scored": 5}, "undecided"),
        (interval(0.1, 0.1), {"scored": 5}, "undecided"),
        (None, {"no_signal": 9, "flat": 1}, "says the same as the student"),
        (None, {"no_data": 9}, "no rollouts yet"),
        (None, {"unbounded": 9}, "the loss is infinite"),
    ],
)
def test_words_claim_no_more_than_the_interval(
    gain: diagnosis_pb2.Interval | None, counts: dict[str, Any], words: str
) -> None:
    summary = diagnosis_pb2.AlignmentSummary(gain_per_unit_step=gain, nodes=10, **counts)
    assert words.lower() in sentence(summary, "big").lower()
