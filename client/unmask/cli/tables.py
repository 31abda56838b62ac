"""Tables that fit 80 columns, with and without colours."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from google.protobuf.message import Message
from rich import box
from rich.table import Table
from rich.text import Text

from unmask.cli.layout import visible
from unmask.cli.numbers import NOTHING, bounds, count, median, probability, share, signed
from unmask.cli.scores import STATUS_NAMES, SURE, Push, TokenScore, Verdict, push_of, verdict
from unmask.v1 import diagnosis_pb2 as pb

_STYLES = {Verdict.HELPS: "green", Verdict.HURTS: "red"}


def table(*columns: str, title: str = "") -> Table:
    """An empty table. `>` before a column's name aligns it to the right; ids don't wrap."""
    made = Table(
        box=box.SIMPLE_HEAD,
        title=title or None,
        title_justify="left",
        pad_edge=False,
        show_edge=False,
        collapse_padding=True,
    )
    for column in columns:
        name = column.removeprefix(">")
        made.add_column(
            name,
            justify="right" if name != column else "left",
            overflow="fold",
            no_wrap=name == "id",
        )
    return made


def key_values(pairs: Iterable[tuple[str, str]]) -> Table:
    """Names and values, one pair a line."""
    made = Table(box=None, show_header=False, pad_edge=False)
    made.add_column(style="dim", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in pairs:
        made.add_row(name, Text(value))
    return made


def interval_cell(interval: pb.Interval | None, digits: int = 2, style: str = "") -> Text:
    """The median above its bounds."""
    if interval is None:
        return Text(NOTHING, style="dim")
    cell = Text(median(interval, digits), style=style)
    cell.append(f"\n{bounds(interval, digits)}", "dim")
    return cell


def given(message: Message, field: str) -> pb.Interval | None:
    """A message's interval, if it has it."""
    interval: pb.Interval | None = getattr(message, field) if message.HasField(field) else None
    return interval


def push_cell(push: Push) -> Text:
    """The teacher above the algorithm."""
    if not push.teacher:
        return Text(push.algorithm)
    cell = Text(push.teacher, style="bold")
    cell.append(f"\n{push.algorithm}", "not bold")
    return cell


def alignment_table(alignments: Iterable[pb.Alignment], names: Mapping[str, str]) -> Table:
    """One node: a row for each teacher and algorithm; P(best) where there are several teachers."""
    alignments = list(alignments)
    ranked = any(alignment.HasField("probability_best") for alignment in alignments)
    made = table("teacher", "status", ">cosine", ">P(>0)", ">gain g·d", ">advantage")
    if ranked:
        made.add_column("P(best)", justify="right")
    for alignment in alignments:
        scored = alignment.HasField("cosine")
        status = STATUS_NAMES.get(alignment.status, str(alignment.status))
        if alignment.HasField("unbounded_token"):
            status += f"\nat {quoted(alignment.unbounded_token.text)}"
        made.add_row(
            push_cell(push_of(alignment, names)),
            Text(status),
            interval_cell(given(alignment, "cosine"), style=_STYLES.get(verdict(alignment), "")),
            f"{alignment.probability_positive:.2f}" if scored else NOTHING,
            interval_cell(given(alignment, "gain"), 3),
            interval_cell(given(alignment, "advantage"), 3),
            *([_best(alignment)] if ranked else []),
        )
    return made


def node_table(node: pb.Node) -> Table:
    """What an answer is about."""
    pairs = [
        ("policy", node.policy_id),
        ("question", node.question_id),
        ("verifier", node.verifier_id),
    ]
    if node.trajectory_id:
        pairs.append(("trajectory", node.trajectory_id))
    pairs.append(("position", str(node.position)))
    if node.HasField("observed"):
        pairs.append(("observed", f"{quoted(node.observed.text)} (id {node.observed.id})"))
    pairs += [
        ("rollouts", count(node.rollouts)),
        (
            "candidates",
            f"{node.candidates}, with {share(node.covered_mass, 1)} of the student's mass; "
            f"effective support {node.effective_support:.2f}",
        ),
    ]
    if node.HasField("success"):
        pairs.append(("success", f"{node.success.median:.2f} ({_unsigned(node.success)})"))
    return key_values(pairs)


def candidate_table(response: pb.GetNodeResponse, limit: int) -> Table:
    """A node's `limit` likeliest candidates and the observed one; the tail last."""
    made = table(">id", "token", ">P", ">rollouts", ">rewards", ">cut off", ">success")
    observed = response.node.observed.id if response.node.HasField("observed") else None
    rows = [
        candidate
        for rank, candidate in enumerate(response.candidates)
        if rank < limit or candidate.token.id == observed
    ]
    if response.HasField("tail"):
        rows.append(response.tail)
    for candidate in rows:
        is_tail = not candidate.HasField("token")
        chosen = not is_tail and candidate.token.id == observed
        made.add_row(
            "" if is_tail else str(candidate.token.id),
            Text("all others" if is_tail else quoted(candidate.token.text) + " ←" * chosen),
            f"{candidate.probability:.4f}",
            count(candidate.rollouts),
            f"{candidate.reward_sum:g}",
            count(candidate.truncated) if candidate.truncated else "",
            _success(candidate),
            style="bold" if chosen else "",
        )
    return made


def token_table(push: Push, texts: Sequence[str], scores: Mapping[int, TokenScore]) -> Table:
    """A trajectory under one push, a row for each token."""
    made = table(
        ">pos", "token", "", ">success", ">cosine", ">90%", ">P(>0)", ">gain g·d", title=str(push)
    )
    for position, text in enumerate(texts):
        score = scores.get(position)
        if score is None:
            continue
        alignment, node = score.alignment, score.node
        found = score.verdict
        scored = alignment.HasField("cosine")
        cosine = (
            Text(median(alignment.cosine), style=_STYLES.get(found, ""))
            if scored
            else Text(STATUS_NAMES.get(alignment.status, ""), style="dim")
        )
        made.add_row(
            str(position),
            Text(quoted(text)),
            found.value,
            f"{node.success.median:.2f}" if node.HasField("success") else NOTHING,
            cosine,
            bounds(alignment.cosine) if scored else "",
            f"{alignment.probability_positive:.2f}" if scored else "",
            median(alignment.gain, 3) if alignment.HasField("gain") else NOTHING,
        )
    return made


def summary_table(summaries: Iterable[pb.AlignmentSummary], names: Mapping[str, str]) -> Table:
    """A set of trajectories: a row for each teacher and algorithm."""
    made = table(
        "teacher", ">nodes", ">mean cosine", ">pooled\ncosine", ">gain per\nunit step", ">advantage"
    )
    made.padding = (0, 0)  # six columns of numbers need the room
    for summary in summaries:
        nodes = Text(count(summary.nodes))
        for number, name in (
            (summary.flat, "flat"),
            (summary.no_signal, "no signal"),
            (summary.unbounded, "unbounded"),
            (summary.no_data, "no data"),
            (summary.not_covered, "not covered"),
        ):
            if number:
                nodes.append(f"\n{share(number, summary.nodes)} {name}", "dim")
        teacher = push_cell(push_of(summary, names))
        if summary.HasField("probability_best"):
            sure = summary.probability_best >= SURE
            best = f"\nP(best) {probability(summary.probability_best)}"
            teacher.append(best, "green" if sure else "")
        if summary.HasField("sample_noise"):
            # How far training on single sampled tokens strays, in steps of the expected length.
            teacher.append(f"\nnoise {summary.sample_noise**0.5:.3g}×", "dim")
        made.add_row(
            teacher,
            nodes,
            interval_cell(given(summary, "mean_cosine")),
            interval_cell(given(summary, "pooled_cosine")),
            interval_cell(given(summary, "gain_per_unit_step"), 3),
            interval_cell(given(summary, "mean_advantage"), 3),
        )
    return made


def gradient_table(response: pb.GetIdealGradientResponse, limit: int) -> Table:
    """The largest components of an ideal gradient."""
    made = table(">id", "token", ">change of the logit", ">90%")
    largest = sorted(response.components, key=lambda c: -abs(c.value.median))[:limit]
    for component in largest:
        made.add_row(
            str(component.token.id) if component.HasField("token") else "",
            Text(quoted(component.token.text) if component.HasField("token") else "all others"),
            signed(component.value.median, 4),
            bounds(component.value, 4),
        )
    return made


def quoted(text: str) -> str:
    """A token's text so that its spaces can be seen."""
    return f"‘{visible(text)}’" if text else visible(text)


def _best(alignment: pb.Alignment) -> str:
    known = alignment.HasField("probability_best")
    return probability(alignment.probability_best) if known else NOTHING


def _success(candidate: pb.Candidate) -> str:
    if not candidate.HasField("success"):
        return NOTHING
    if candidate.exact:
        return f"{candidate.success.median:.2f} exact"
    return f"{candidate.success.median:.2f} {_unsigned(candidate.success)}"


def _unsigned(interval: pb.Interval) -> str:
    return f"{interval.low:.2f}…{interval.high:.2f}"
