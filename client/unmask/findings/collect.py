"""Getting the numbers: every student on every task, grown once and asked about.

All of it is keyed by what was asked (see `unmask.cli.study`), so that a run that was interrupted
goes on where it was, and a second one samples nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from unmask.cli import study
from unmask.cli.trajectories import is_correct
from unmask.client import Client
from unmask.growth import GrowthHandle
from unmask.requests.catalog import ControlName
from unmask.v1 import catalog_pb2, diagnosis_pb2, trajectory_pb2

FIRST = "reverse_kl"
"""The algorithm of all claims but those about algorithms."""
METHODS = ("forward_kl", "jsd:0.5", "opd", "minillm", "minillm:length_normalized")
"""Beside it, where algorithms are compared."""
CONTROLS_OF_STUDENT: tuple[ControlName, ...] = ("flattened", "sharpened")
CONTROLS_OF_TEACHER: tuple[ControlName, ...] = ("entropy_matched", "permuted")
NO_CONTEXT = "self+none"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What `unmask findings` was asked."""

    students: tuple[tuple[str, str], ...]
    """Names and models."""
    plan: study.Plan
    """All else; its student is replaced by each of them."""
    methods: tuple[str, ...]
    """Algorithms compared with reverse KL."""
    methods_on: int
    """Generations that they are compared on: one for each of so many questions."""
    questions_per_task: int | None
    """Only the first so many of each task; None for all."""


@dataclass(slots=True)
class Cell:
    """A student on a task, with everything that was found."""

    student: str
    task: str
    subjects: study.Subjects
    controls: dict[str, dict[str, str]]
    """By teacher's id: its controls' ids by kind; the student's own under the empty id."""
    trajectories: list[trajectory_pb2.Trajectory] = field(default_factory=list)
    rollouts: int = 0
    """That its growth rests on."""
    summary: diagnosis_pb2.SummarizeAlignmentsResponse = field(
        default_factory=diagnosis_pb2.SummarizeAlignmentsResponse
    )
    groups: diagnosis_pb2.CompareGroupsResponse | None = None
    """Incorrect and correct generations; None without some of both."""
    methods: diagnosis_pb2.SummarizeAlignmentsResponse = field(
        default_factory=diagnosis_pb2.SummarizeAlignmentsResponse
    )
    tokens: dict[str, list[diagnosis_pb2.StreamTrajectoryAlignmentsResponse]] = field(
        default_factory=dict
    )
    """By trajectory: every token under every teacher."""

    @property
    def name(self) -> str:
        """For tables."""
        return f"{self.student}, {self.task}" if self.task else self.student

    @property
    def teachers(self) -> dict[str, str]:
        """Labels by id, without controls."""
        return self.subjects.labels

    @property
    def correct(self) -> float:
        """Share of the generations that are."""
        return sum(map(is_correct, self.trajectories)) / len(self.trajectories)


Step = Callable[[str, GrowthHandle | None], None]
"""Is told what is being done, and waits for a growth if one is given."""


def cells(client: Client, wanted: Wanted, step: Step) -> Iterator[Cell]:
    """One after the other, in the order asked."""
    for name, model in wanted.students:
        plan = dataclasses.replace(wanted.plan, student=model)
        step(f"{name}: registering", None)
        subjects = study.register(client, plan)
        for remark in subjects.remarks:
            step(remark, None)
        controls = _register_controls(client, subjects)
        for task, questions in _tasks(subjects.questions).items():
            some = questions[: wanted.questions_per_task]
            of_task = dataclasses.replace(subjects, questions=some)
            study.check_size(some, plan)
            cell = Cell(name, task, of_task, controls)
            _fill(client, wanted, plan, cell, step)
            yield cell


def _tasks(
    questions: Sequence[catalog_pb2.Question],
) -> dict[str, list[catalog_pb2.Question]]:
    found: dict[str, list[catalog_pb2.Question]] = {}
    for question in questions:
        found.setdefault(question.fields.get("task", ""), []).append(question)
    return found


def _register_controls(client: Client, subjects: study.Subjects) -> dict[str, dict[str, str]]:
    made: dict[str, dict[str, str]] = {"": {}}
    for kind in CONTROLS_OF_STUDENT:
        answer = client.register_teacher(base=subjects.policy, control=kind)
        made[""][kind] = answer.teacher.id
    for teacher, label in subjects.labels.items():
        if label == NO_CONTEXT:
            continue
        made[teacher] = {}
        for kind in CONTROLS_OF_TEACHER:
            answer = client.register_teacher(base=teacher, control=kind)
            made[teacher][kind] = answer.teacher.id
    return made


def _fill(client: Client, wanted: Wanted, plan: study.Plan, cell: Cell, step: Step) -> None:
    step(f"{cell.name}: sampling", None)
    cell.trajectories = list(study.sample(client, cell.subjects, plan).trajectories)
    handle = study.start_growth(client, cell.subjects, plan, cell.trajectories)
    step(f"{cell.name}: growing", handle)
    grown = client.get_growth(handle.growth)
    cell.rollouts = grown.rollouts_sampled + grown.rollouts_cached
    teachers = list(cell.teachers)
    step(f"{cell.name}: comparing teachers", None)
    cell.summary = client.summarize(
        cell.trajectories,
        teachers=teachers,
        algorithms=FIRST,
        verifier=plan.verifier,
        top_k=plan.top_k,
    )
    split: dict[str, list[trajectory_pb2.Trajectory]] = {"incorrect": [], "correct": []}
    for trajectory in cell.trajectories:
        split["correct" if is_correct(trajectory) else "incorrect"].append(trajectory)
    if all(split.values()):
        controls = [made for kinds in cell.controls.values() for made in kinds.values()]
        cell.groups = client.compare_groups(
            split,
            teachers=[*teachers, *controls],
            algorithms=FIRST,
            verifier=plan.verifier,
            top_k=plan.top_k,
        )
    step(f"{cell.name}: comparing algorithms", None)
    if wanted.methods:
        cell.methods = client.summarize(
            _one_each(cell.trajectories, wanted.methods_on),
            teachers=[t for t, label in cell.teachers.items() if label != NO_CONTEXT],
            algorithms=[FIRST, *wanted.methods],
            verifier=plan.verifier,
            top_k=plan.top_k,
        )
    step(f"{cell.name}: token by token", None)
    for trajectory in cell.trajectories:
        cell.tokens[trajectory.id] = list(
            client.trajectory_alignments(
                trajectory,
                teachers=teachers,
                algorithms=FIRST,
                verifier=plan.verifier,
                top_k=plan.top_k,
            )
        )


def _one_each(
    trajectories: Sequence[trajectory_pb2.Trajectory], most: int
) -> list[trajectory_pb2.Trajectory]:
    """The first generation of each of the first questions."""
    first: dict[str, trajectory_pb2.Trajectory] = {}
    for trajectory in trajectories:
        first.setdefault(trajectory.question_id, trajectory)
    return list(first.values())[:most]
