"""Which teacher is better, and what picking tokens would bring."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from unmask.algorithms import format_algorithm
from unmask.cli.numbers import NOTHING, bounds, median, probability, share
from unmask.cli.scores import SURE, push_of
from unmask.cli.tables import given, summary_table, table
from unmask.v1 import diagnosis_pb2 as pb

T = TypeVar("T", pb.AlignmentSummary, pb.TeacherComparison)

_ALL_PAIRS = 10
"""More pairs than that are too many to read: then only those with the best teacher."""


def summary_view(
    response: pb.SummarizeAlignmentsResponse, names: Mapping[str, str]
) -> RenderableType:
    """The answer over a set of generations in up to three tables, and what their columns mean."""
    summaries = response.summaries
    parts: list[RenderableType] = [summary_table(summaries, names)]
    terms = [*_SUMMARY_TERMS]
    if any(summary.HasField("probability_best") for summary in summaries):
        terms.append(_BEST_TERM)
    if response.comparisons:
        parts += ["", _title("Which teacher is better, by gain per unit step")]
        parts.append(comparison_table(response, names))
        terms.append(_COMPARISON_TERM)
    if any(summary.HasField("kept") for summary in summaries):
        parts += ["", _title("If only tokens were kept where the push more likely helps")]
        parts.append(kept_table(summaries, names))
        terms.append(_KEPT_TERM)
    return Group(*parts, "", legend(terms))


def comparison_table(response: pb.SummarizeAlignmentsResponse, names: Mapping[str, str]) -> Table:
    """Pairs of teachers by gain per unit step, algorithm by algorithm."""
    made = table("", ">difference", ">90%", ">P(better)")
    for pairs in _titled(made, _by_algorithm(response.comparisons)):
        for pair in _ordered(pairs, response.summaries):
            gain = given(pair, "gain_per_unit_step")
            name = Text(names.get(pair.teacher_id, pair.teacher_id), style="bold")
            other = names.get(pair.other_teacher_id, pair.other_teacher_id)
            better = pair.probability_better
            made.add_row(
                name.append(f" - {other}", "not bold"),
                NOTHING if gain is None else median(gain, 3),
                NOTHING if gain is None else bounds(gain, 3),
                Text(probability(better), style="green" if better >= SURE else "")
                if pair.HasField("probability_better")
                else NOTHING,
            )
    return made


def kept_table(summaries: Iterable[pb.AlignmentSummary], names: Mapping[str, str]) -> Table:
    """What is left of each push if its bad tokens are dropped, algorithm by algorithm."""
    made = table("", ">kept", ">mean cosine", ">gain per unit step", ">of all")
    groups = _by_algorithm(summary for summary in summaries if summary.HasField("kept"))
    for group in _titled(made, groups):
        for summary in group:
            push = push_of(summary, names)
            everything = given(summary, "gain_per_unit_step")
            made.add_row(
                Text(push.teacher or push.algorithm),
                share(summary.kept.share, 1),
                _on_one_line(given(summary.kept, "mean_cosine"), 2),
                _on_one_line(given(summary.kept, "gain_per_unit_step"), 3),
                NOTHING if everything is None else median(everything, 3),
            )
    return made


def legend(terms: Sequence[tuple[str, str]]) -> Table:
    """What words mean, one a row."""
    made = Table(box=None, show_header=False, pad_edge=False)
    made.add_column(style="dim", no_wrap=True)
    made.add_column(style="dim", overflow="fold")
    for name, meaning in terms:
        made.add_row(name, meaning)
    return made


def _by_algorithm(items: Iterable[T]) -> dict[str, list[T]]:
    found: dict[str, list[T]] = {}
    for item in items:
        found.setdefault(format_algorithm(item.algorithm), []).append(item)
    return found


def _titled(made: Table, groups: Mapping[str, list[T]]) -> Iterator[list[T]]:
    """The groups, each below a row with its algorithm if there are several."""
    for algorithm, group in groups.items():
        if len(groups) > 1:
            made.add_row(Text(algorithm, style="italic"))
        yield group


def _ordered(
    pairs: Sequence[pb.TeacherComparison], summaries: Iterable[pb.AlignmentSummary]
) -> list[pb.TeacherComparison]:
    """Pairs under one algorithm with the better teacher first, the largest lead on top."""
    rivals = [s for s in summaries if s.algorithm == pairs[0].algorithm]
    best = max(rivals, key=lambda s: s.probability_best, default=pb.AlignmentSummary())
    shown = [
        pair if pair.gain_per_unit_step.median >= 0 else _turned(pair)
        for pair in pairs
        if len(pairs) <= _ALL_PAIRS or best.teacher_id in (pair.teacher_id, pair.other_teacher_id)
    ]
    return sorted(shown, key=lambda pair: -pair.gain_per_unit_step.median)


def _turned(pair: pb.TeacherComparison) -> pb.TeacherComparison:
    """The same the other way round; only what is shown here."""
    gain = pair.gain_per_unit_step
    made = pb.TeacherComparison(
        teacher_id=pair.other_teacher_id,
        other_teacher_id=pair.teacher_id,
        algorithm=pair.algorithm,
        gain_per_unit_step=pb.Interval(median=-gain.median, low=-gain.high, high=-gain.low),
    )
    if pair.HasField("probability_better"):
        made.probability_better = 1.0 - pair.probability_better
    return made


def _on_one_line(interval: pb.Interval | None, digits: int) -> Text:
    if interval is None:
        return Text(NOTHING, style="dim")
    cell = Text(median(interval, digits))
    return cell.append(f" {bounds(interval, digits)}", "dim")


def _title(text: str) -> Text:
    return Text(text, style="bold")


_SUMMARY_TERMS = [
    ("flat", "tokens where no push changes success, as far as the rollouts can tell"),
    (
        "cosine",
        "how a teacher's push lies to the best one, -1 to 1; mean: over the tokens that have one, "
        "pooled: of all their pushes as one",
    ),
    ("gain per unit step", "change of success for a step of length 1; it ranks teachers"),
    ("advantage", "what success gains if the teacher chose one token, on average"),
]
_BEST_TERM = ("P(best)", "how sure it is that this teacher has the highest gain per unit step")
_COMPARISON_TERM = (
    "P(better)",
    "how sure the lead is; both teachers meet the same rollouts, so that much of the noise cancels",
)
_KEPT_TERM = (
    "kept",
    "share of the tokens with a cosine; of all: what the gain is without picking. The numbers "
    "allow for tokens having been picked by the same estimates",
)
