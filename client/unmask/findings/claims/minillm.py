"""MiniLLM's coupling of whole generations adds noise and lowers alignment."""

from __future__ import annotations

from collections.abc import Sequence

from unmask.algorithms import format_algorithm
from unmask.findings.collect import FIRST, Cell
from unmask.findings.finding import (
    RULE_TOGETHER,
    Finding,
    Range,
    Value,
    Verdict,
    given,
    together,
)
from unmask.v1 import diagnosis_pb2 as pb

MINILLM = "minillm:length_normalized"
"""The paper's variant."""


def examine(cells: Sequence[Cell]) -> Finding:
    """Algorithms beside each other, on the first generation of each question."""
    rows: list[tuple[Value, ...]] = []
    verdicts: list[Verdict] = []
    for cell in cells:
        pooled: dict[tuple[str, str], Range | None] = {}
        for summary in cell.methods.summaries:
            algorithm = format_algorithm(summary.algorithm)
            teacher = cell.teachers[summary.teacher_id]
            mean = given(summary, "mean_cosine")
            found = given(summary, "pooled_cosine")
            # Of the SAMPLED form it would be about the step of the one token that was drawn.
            expected = summary.algorithm.form == pb.FORM_EXPECTED
            known = expected and summary.HasField("sample_noise")
            noise = summary.sample_noise**0.5 if known else None
            rows.append((cell.name, teacher, algorithm, summary.scored, mean, found, noise))
            pooled[teacher, algorithm] = found
        for teacher in dict.fromkeys(teacher for teacher, _ in pooled):
            verdicts.append(_lower(pooled.get((teacher, MINILLM)), pooled.get((teacher, FIRST))))
    return Finding(
        claim="MiniLLM's coupling lowers alignment",
        says="Coupling the whole generation adds noise and lowers alignment against methods that "
        "look at each node by itself, such as GKD.",
        columns=(
            "student, task",
            "teacher",
            "algorithm",
            "scored",
            "mean cosine",
            "pooled cosine",
            "noise of one token's step",
        ),
        rows=tuple(rows),
        verdict=together(verdicts),
        rule="By student, task and teacher: the pooled cosine of normalised MiniLLM, all of its "
        "interval below that of reverse KL (contradicted the other way round). In all: "
        f"{RULE_TOGETHER}.",
        reading=(
            "That it adds noise needs no test: a loss over the whole vocabulary, as GKD's, has "
            "none at a token, MiniLLM has that of the one continuation. How much is the last "
            "column: how far one training step strays from the expected one, in lengths of that; "
            "of a divergence, when it is trained on one sampled token. The two are not the same "
            "noise: MiniLLM takes its own token exactly.",
            "The intervals of two algorithms are not paired, which makes this rule a cautious one; "
            "MiniLLM's have the error of its estimated continuations in them.",
        ),
    )


def _lower(minillm: Range | None, other: Range | None) -> Verdict:
    if minillm is None or other is None:
        return Verdict.UNDECIDED
    if minillm.high < other.low:
        return Verdict.SUPPORTED
    return Verdict.CONTRADICTED if minillm.low > other.high else Verdict.UNDECIDED
