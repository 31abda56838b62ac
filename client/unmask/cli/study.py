"""The steps of `unmask diagnose`, without a word of output.

Everything that it does is keyed by what was asked: policies, teachers and questions by what they
are, generations by their seed, and the growth by a hash of its whole request. So a second run with
the same arguments finds it all and samples nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from unmask.cli.sources import question_error, registered
from unmask.cli.trajectories import is_correct, sampled
from unmask.client import Client
from unmask.errors import AlreadyExistsError
from unmask.growth import GrowthHandle
from unmask.requests import growth as growth_requests
from unmask.requests import trajectory as trajectory_requests
from unmask.requests.growth import AllocationName, StatisticName
from unmask.v1 import catalog_pb2, diagnosis_pb2, growth_pb2, trajectory_pb2

MAX_TRAJECTORIES = 1000
"""What one summary may cover."""

_MOST_PER_NODE = 256
"""Rollouts for each token that a wanted precision may take at most, if nothing else is said, ..."""
_MOST = 1_000_000
"""... and in all."""

_PAIRS = 6
"""Pairs of generations that are looked at to find one worth showing."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What `unmask diagnose` was asked."""

    questions: str
    """A path, or a set of reasoning-gym; see `read_questions` and `parse_set`."""
    student: str
    """A directory."""
    teachers: tuple[tuple[str, str], ...]
    """Names and directories."""
    contexts: tuple[str, ...]
    """Each makes a teacher of the student itself: self-distillation."""
    losses: tuple[str, ...]
    samples: int
    """Generations for each question."""
    rollouts_per_node: int
    """0: what `half_width` takes."""
    max_rollouts: int | None
    half_width: float | None
    statistic: StatisticName
    allocation: AllocationName
    temperature: float
    prompt_template: str
    stop_texts: tuple[str, ...]
    max_questions: int | None
    max_new_tokens: int
    seed: int
    verifier: str
    top_k: int
    objective: str = ""
    """Instead of the verifier, a weighted sum for answers; questions keep the verifier."""

    @property
    def grading(self) -> dict[str, Any]:
        """What answers are graded by, as arguments of calls."""
        if self.objective:
            return {"objective": self.objective}
        return {"verifier": self.verifier}


@dataclass(slots=True)
class Subjects:
    """Who is diagnosed on what, as registered."""

    policy: catalog_pb2.Policy
    labels: dict[str, str]
    """From teachers' ids to what the user calls them, in the order asked."""
    questions: list[catalog_pb2.Question]
    """Each once."""
    remarks: list[str] = field(default_factory=list)
    """Warnings, and questions that were refused."""


@dataclass(frozen=True, slots=True)
class Example:
    """A generation and every teacher's push at each of its tokens."""

    trajectory: trajectory_pb2.Trajectory
    question: catalog_pb2.Question
    answers: tuple[diagnosis_pb2.StreamTrajectoryAlignmentsResponse, ...]


def register(client: Client, plan: Plan) -> Subjects:
    """Register the student, the teachers and the questions.

    Raises:
        ValueError: no question is usable.
        UnmaskError: the server refused one of them.

    """
    answer = client.register_policy(
        plan.student,
        temperature=plan.temperature,
        max_new_tokens=plan.max_new_tokens,
        stop_texts=plan.stop_texts,
        prompt_template=plan.prompt_template,
    )
    subjects = Subjects(answer.policy, {}, [], [f"student: {w}" for w in answer.warnings])
    for name, model in plan.teachers:
        _add_teacher(client, subjects, plan, name, model=model)
    for context in plan.contexts:
        _add_teacher(client, subjects, plan, f"self+{context}", context=context)
    _add_questions(client, subjects, plan)
    return subjects


def check_size(questions: Sequence[catalog_pb2.Question], plan: Plan) -> None:
    """Refuse more generations than one summary may cover. Raises ValueError."""
    if len(questions) * plan.samples > MAX_TRAJECTORIES:
        raise ValueError(
            f"--max-questions: {len(questions)} questions with {plan.samples} samples are "
            f"more than {MAX_TRAJECTORIES} generations; ask for fewer"
        )


def sample(
    client: Client,
    subjects: Subjects,
    plan: Plan,
    update: Callable[[int], object] = lambda _: None,
) -> trajectory_pb2.SampleTrajectoriesResponse:
    """The student's generations, sampled now or before; `update` is told how many there are yet."""
    call = trajectory_requests.sample_trajectories(
        subjects.policy, subjects.questions, count=plan.samples, seed=plan.seed
    )
    return sampled(client, call, update)


def start_growth(
    client: Client,
    subjects: Subjects,
    plan: Plan,
    trajectories: Sequence[trajectory_pb2.Trajectory],
) -> GrowthHandle:
    """Start growing every node of the generations, or find the growth of an earlier run.

    One that was given up or cancelled is not found: the next one takes its place.
    """
    tokens = sum(trajectory.length for trajectory in trajectories)
    most = plan.rollouts_per_node * tokens or min(_MOST, _MOST_PER_NODE * tokens)
    build = growth_requests.start_growth(
        trajectories,
        rollouts=most if plan.max_rollouts is None else plan.max_rollouts,
        rollouts_per_node=plan.rollouts_per_node,
        allocation=plan.allocation,
        teachers=list(subjects.labels),
        algorithms=plan.losses,
        half_width=plan.half_width,
        statistic=plan.statistic,
        request_id="",
        **plan.grading,
        top_k=plan.top_k,
    )
    content = build.request.SerializeToString(deterministic=True)
    attempt = 0
    while True:
        request = growth_pb2.StartGrowthRequest.FromString(content)
        digest = hashlib.sha256(content + attempt.to_bytes(4, "big")).hexdigest()
        request.request_id = f"diagnose-{digest[:32]}"
        growth = client.call(dataclasses.replace(build, request=request))
        if growth.state not in (
            growth_pb2.GROWTH_STATE_FAILED,
            growth_pb2.GROWTH_STATE_CANCELLED,
        ):
            return GrowthHandle(client, growth)
        attempt += 1


def examples(
    client: Client,
    subjects: Subjects,
    plan: Plan,
    trajectories: Iterable[trajectory_pb2.Trajectory],
) -> list[Example]:
    """A correct and an incorrect generation, of one question if any was answered both ways.

    Of some such pairs it is the one with the most scored tokens: most to see, not most typical.
    """

    def example(trajectory: trajectory_pb2.Trajectory) -> Example:
        question = next(q for q in subjects.questions if q.id == trajectory.question_id)
        answers = client.trajectory_alignments(
            trajectory,
            teachers=list(subjects.labels),
            algorithms=plan.losses,
            **plan.grading,
            top_k=plan.top_k,
        )
        return Example(trajectory, question, tuple(answers))

    found = [[example(one) for one in pair] for pair in pairs(trajectories)[:_PAIRS]]
    return max(found, key=lambda pair: sum(map(_scored, pair)), default=[])


def pairs(
    trajectories: Iterable[trajectory_pb2.Trajectory],
) -> list[list[trajectory_pb2.Trajectory]]:
    """For each question that was answered both ways its first correct and incorrect generation.

    If there is none, the first of each kind over all questions, as far as there are any.
    """
    by_question: dict[str, dict[bool, trajectory_pb2.Trajectory]] = {}
    overall: dict[bool, trajectory_pb2.Trajectory] = {}
    for trajectory in trajectories:
        correct = is_correct(trajectory)
        overall.setdefault(correct, trajectory)
        by_question.setdefault(trajectory.question_id, {}).setdefault(correct, trajectory)
    both = [found for found in by_question.values() if len(found) == 2] or [overall]
    return [[found[correct] for correct in (True, False) if correct in found] for found in both]


def _scored(example: Example) -> int:
    return sum(
        alignment.HasField("cosine")
        for answer in example.answers
        for alignment in answer.alignments
    )


def _add_teacher(
    client: Client, subjects: Subjects, plan: Plan, name: str, *, model: str = "", context: str = ""
) -> None:
    """A model, or the student itself in a context."""
    template = "" if context else plan.prompt_template
    policy = subjects.policy

    def ask(as_name: str) -> catalog_pb2.RegisterTeacherResponse:
        return client.register_teacher(
            model,
            base="" if model else policy,
            name=as_name,
            context=context,
            prompt_template=template,
            policies=policy,
        )

    try:
        answer = ask(name)
    except AlreadyExistsError:
        # Somebody on this server calls another teacher so; here the label is enough.
        answer = ask("")
    if answer.teacher.id in subjects.labels:
        raise ValueError(
            f"--teacher: {name} is the same teacher as {subjects.labels[answer.teacher.id]}"
        )
    subjects.labels[answer.teacher.id] = name
    subjects.remarks += [f"teacher {name}: {warning}" for warning in answer.warnings]


def _add_questions(client: Client, subjects: Subjects, plan: Plan) -> None:
    seen = set()
    for origin, result in registered(
        client, plan.questions, verifier=plan.verifier, most=plan.max_questions
    ):
        if result.HasField("error"):
            subjects.remarks.append(f"{origin}: {question_error(result)}")
        elif result.question.id not in seen:
            seen.add(result.question.id)
            subjects.questions.append(result.question)
    if not subjects.questions:
        raise ValueError(
            "; ".join([f"{plan.questions}: no question that can be used", *subjects.remarks[:3]])
        )
