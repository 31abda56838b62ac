"""What `unmask diagnose` shows and writes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from rich.console import Console
from rich.text import Text

import unmask
from unmask.cli.comparisons import summary_view
from unmask.cli.growth import Cost, cost_rows, nodes, precision_rows
from unmask.cli.numbers import count, seconds, share
from unmask.cli.scores import by_push, push_of
from unmask.cli.study import Example, Plan, Subjects
from unmask.cli.tables import key_values
from unmask.cli.trajectories import heading_text, is_correct
from unmask.cli.view import token_view
from unmask.v1 import diagnosis_pb2, growth_pb2, trajectory_pb2

_FEW_IN_PLAY = 2.5
"""A median effective support below this makes single cosines nearly +-1, whatever the teacher."""


@dataclass(frozen=True, slots=True)
class Report:
    """All that was found."""

    plan: Plan
    subjects: Subjects
    trajectories: list[trajectory_pb2.Trajectory]
    sampled_trajectories: int
    """How many of them this run sampled."""
    growth: growth_pb2.Growth
    cost: Cost
    seconds: float
    """Of the whole run."""
    summary: diagnosis_pb2.SummarizeAlignmentsResponse
    examples: list[Example]


def show(console: Console, report: Report, *, plain: bool = False) -> None:
    """Print it: what was asked, the answer in numbers and in words, two generations, the cost."""
    _heading(console, "Asked")
    console.print(key_values(_asked(report)))
    for remark in report.subjects.remarks:
        console.print(Text(f"note: {remark}", style="dim"))
    _heading(console, "Where the teachers push")
    console.print(summary_view(report.summary, report.subjects.labels))
    console.print()
    for line in (*map(_sentence_of(report), report.summary.summaries), *_cautions(report)):
        console.print(Text(line))
    if report.examples:
        console.print()
        console.print(
            Text(
                "Two generations, chosen for having many scored tokens; not the most typical.",
                style="dim",
            )
        )
    for example in report.examples:
        kind = "A correct" if is_correct(example.trajectory) else "An incorrect"
        _heading(console, f"{kind} generation")
        fields = example.question.fields
        console.print(
            heading_text(example.trajectory, fields.get("question", ""), fields.get("answer", ""))
        )
        console.print()
        texts = [token.text for token in example.trajectory.tokens]
        scores = by_push(example.answers, report.subjects.labels)
        console.print(token_view(console, texts, scores, plain=plain))
    _heading(console, "Cost")
    console.print(
        key_values(
            [
                (
                    "generations",
                    f"{count(report.sampled_trajectories)} sampled, "
                    f"{count(len(report.trajectories) - report.sampled_trajectories)} "
                    "from the cache",
                ),
                *cost_rows(report.cost),
                *precision_rows(report.growth, report.plan.statistic),
                ("in all", seconds(report.seconds)),
            ]
        )
    )


def sentence(summary: diagnosis_pb2.AlignmentSummary, name: str) -> str:
    """What a summary means, in words, with no more certainty than its interval has.

    Judged by the gain per unit step, which is unbiased at any number of rollouts.
    """
    if not summary.HasField("gain_per_unit_step"):
        return f"{name}: no score. {_why_no_score(summary)}"
    gain = summary.gain_per_unit_step
    if gain.low <= 0 <= gain.high:
        return (
            f"{name}: undecided; the interval of the gain includes 0. More questions or more "
            "rollouts a node would narrow it."
        )
    if gain.low > 0:
        return f"{name}: pushes towards success on these generations."
    return f"{name}: pushes away from success on these generations."


def write_json(file: Path, report: Report) -> None:
    """Everything, as one JSON object; messages as protobuf's JSON, fields named as in the proto."""
    plan = dataclasses.asdict(report.plan)
    plan["questions"] = str(report.plan.questions)
    content = {
        "unmask": unmask.__version__,
        "plan": plan,
        "policy": _dict(report.subjects.policy),
        "teachers": [
            {"id": identity, "label": label} for identity, label in report.subjects.labels.items()
        ],
        "questions": [_dict(question) for question in report.subjects.questions],
        "remarks": report.subjects.remarks,
        "trajectories": [_dict(trajectory) for trajectory in report.trajectories],
        "sampled_trajectories": report.sampled_trajectories,
        "growth": _dict(report.growth),
        "cost": dataclasses.asdict(report.cost),
        "seconds": report.seconds,
        "summaries": [
            {"label": str(push_of(summary, report.subjects.labels)), **_dict(summary)}
            for summary in report.summary.summaries
        ],
        "comparisons": [_dict(comparison) for comparison in report.summary.comparisons],
        "examples": [
            {
                "trajectory": example.trajectory.id,
                "positions": [_dict(answer) for answer in example.answers],
            }
            for example in report.examples
        ],
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _asked(report: Report) -> list[tuple[str, str]]:
    policy, trajectories = report.subjects.policy, report.trajectories
    correct = sum(map(is_correct, trajectories))
    cut_off = sum(t.finish_reason == trajectory_pb2.FINISH_REASON_LENGTH for t in trajectories)
    outcome = f"{share(correct, len(trajectories))} correct"
    if cut_off:
        outcome += f", {share(cut_off, len(trajectories))} cut off (these count as failed)"
    plan = report.plan
    return [
        ("student", f"{plan.student} at temperature {policy.sampling.temperature:g}"),
        ("teachers", ", ".join(report.subjects.labels.values()) or "none"),
        ("questions", f"{count(len(report.subjects.questions))} from {plan.questions}"),
        ("generations", f"{count(len(trajectories))}: {outcome}"),
        ("rollouts", _spread(plan)),
        ("nodes", nodes(report.growth)),
    ]


def _spread(plan: Plan) -> str:
    """When there are enough rollouts, and who gets them."""
    ends = []
    if plan.rollouts_per_node:
        ends.append(f"{count(plan.rollouts_per_node)} a node")
    if plan.half_width is not None:
        what = {"cosine": "every cosine", "ranking": "the best teacher, or its lead,"}.get(
            plan.statistic, f"the {plan.statistic.replace('_', ' ')}"
        )
        ends.append(f"until {what} is known to ±{plan.half_width:g}")
    if plan.max_rollouts is not None:
        ends.append(f"{count(plan.max_rollouts)} in all")
    return f"{' or '.join(ends)}, {plan.allocation.replace('_', ' ')}"


def _sentence_of(report: Report) -> Callable[[diagnosis_pb2.AlignmentSummary], str]:
    return lambda summary: "• " + sentence(summary, str(push_of(summary, report.subjects.labels)))


def _cautions(report: Report) -> Sequence[str]:
    said = []
    correct = sum(map(is_correct, report.trajectories))
    if correct in (0, len(report.trajectories)):
        always = "always" if correct else "never"
        said.append(
            f"• The student {always} succeeded in these generations, so there is little to learn "
            "about what success depends on."
        )
    quartiles = [q for s in report.summary.summaries[:1] for q in s.effective_support_quartiles]
    if len(quartiles) == 3 and quartiles[1] < _FEW_IN_PLAY:
        said.append(
            f"• At half of the nodes the student has the choice of no more than {quartiles[1]:.1f} "
            "tokens (effective support). With so few a cosine can hardly be anything but ±1; read "
            "the pooled numbers."
        )
    said.append(
        "• Intervals hold 90%. A push is the first step of training on these generations; what "
        "many steps would do, this does not say."
    )
    return said


def _why_no_score(summary: diagnosis_pb2.AlignmentSummary) -> str:
    reasons = {
        summary.not_covered: "Nothing is stored of this teacher here.",
        summary.no_signal: "The teacher says the same as the student.",
        summary.flat: "Nowhere was an effect on success to be seen.",
        summary.unbounded: "The loss is infinite: the teacher excludes tokens of the student.",
        summary.no_data: "There are no rollouts yet.",
    }
    return reasons[max(reasons)]


def _heading(console: Console, text: str) -> None:
    console.print()
    console.print(Text(text, style="bold underline"))


def _dict(message: Message) -> dict[str, Any]:
    return MessageToDict(message, preserving_proto_field_name=True)
