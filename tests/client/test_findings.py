"""Verdicts and numbers of `unmask findings`."""

from __future__ import annotations

import json
import random

import pytest
from unmask.cli import study
from unmask.findings.claims import configurations, neighbours
from unmask.findings.collect import Cell
from unmask.findings.finding import Finding, Range, Verdict, above, at_odds, near, together
from unmask.findings.page import as_json, cell_text, page
from unmask.findings.resampling import interval, rank_correlation, reliability
from unmask.findings.tokens import Scored
from unmask.v1 import catalog_pb2, diagnosis_pb2

YES, NO, OPEN = Verdict.SUPPORTED, Verdict.CONTRADICTED, Verdict.UNDECIDED


def test_a_claim_is_supported_only_by_a_whole_interval() -> None:
    assert above(Range(0.3, 0.1, 0.5)) is YES
    assert above(Range(0.3, -0.1, 0.5)) is OPEN
    assert above(Range(-0.3, -0.5, -0.1)) is NO
    assert above(None) is OPEN
    assert above(Range(0.3, 0.1, 0.5), 0.2) is OPEN


def test_near_zero_is_within_a_stated_distance() -> None:
    assert near(Range(0.0, -0.05, 0.05), 0.1) is YES
    assert near(Range(0.0, -0.2, 0.2), 0.1) is OPEN
    assert near(Range(0.3, 0.2, 0.4), 0.1) is NO


@pytest.mark.parametrize(
    ("rows", "verdict"),
    [
        ([YES, YES, OPEN], YES),
        ([YES, OPEN, OPEN], OPEN),
        ([YES, YES, NO], OPEN),
        ([NO, OPEN], NO),
        ([OPEN], OPEN),
        ([], OPEN),
    ],
)
def test_rows_that_are_at_odds_decide_nothing(rows: list[Verdict], verdict: Verdict) -> None:
    assert together(rows) is verdict
    assert at_odds(rows) == (YES in rows and NO in rows)


def test_one_best_everywhere_or_not() -> None:
    abc = frozenset("abc")

    def verdict(*cells: str) -> Verdict:
        leads = {(i, *pair.split(">")) for i, cell in enumerate(cells) for pair in cell.split()}
        return configurations._verdict([abc] * len(cells), leads)

    assert verdict("a>b b>c", "c>a") is YES
    # The runners-up change places, but one is the best of all.
    assert verdict("a>b a>c b>c", "a>b a>c c>b") is NO
    assert verdict("a>b a>c") is OPEN
    assert verdict("a>b", "a>b a>c") is OPEN
    assert verdict("", "") is OPEN


def test_a_lead_is_sure_over_all_pairs_that_were_looked_at() -> None:
    def cell(*sure: float) -> Cell:
        names = [f"t{i}" for i in range(len(sure) + 1)]
        pairs = [
            diagnosis_pb2.TeacherComparison(
                teacher_id=names[0], other_teacher_id=name, probability_better=p
            )
            for name, p in zip(names[1:], sure, strict=True)
        ]
        subjects = study.Subjects(catalog_pb2.Policy(), {name: name for name in names}, [])
        found = Cell("s", "", subjects, {})
        found.summary.comparisons.extend(pairs)
        return found

    assert configurations._leads([cell(0.97)]) == {(0, "t0", "t1")}
    assert configurations._leads([cell(0.97, 0.5)]) == set()
    assert configurations._leads([cell(0.99, 0.002)]) == {(0, "t0", "t1"), (0, "t2", "t0")}


def test_what_noise_alone_makes_is_not_reliable() -> None:
    rng = random.Random(3)

    def cosines(spread: float, noise: float) -> list[Range]:
        half = 1.645 * noise
        medians = [rng.gauss(0, spread) for _ in range(400)]
        return [Range(m, m - half, m + half) for m in medians]

    assert reliability(cosines(0.5, 0.1)) == pytest.approx(0.96, abs=0.02)
    assert reliability(cosines(0.1, 0.5)) == pytest.approx(0.04, abs=0.02)
    assert reliability([]) is None


def test_rank_correlation_with_ties() -> None:
    from itertools import permutations

    assert rank_correlation([(1, 10), (2, 20), (3, 30)]) == pytest.approx(1.0)
    assert rank_correlation([(1, 3), (2, 2), (3, 1)]) == pytest.approx(-1.0)
    assert rank_correlation([(1, 1), (1, 2), (2, 3)]) == pytest.approx(0.8660254)
    assert rank_correlation([(1, 1), (2, 2)]) is None
    assert rank_correlation([(1, 1)] * 5) is None
    values = [rank_correlation(list(enumerate(p))) for p in permutations(range(4))]
    assert sum(v for v in values if v is not None) == pytest.approx(0.0)


def test_intervals_resample_questions_and_hold_the_truth() -> None:
    rng = random.Random(1)
    held = 0
    for _ in range(60):
        sample = {}
        for q in range(12):
            level = rng.gauss(0.4, 0.3)
            sample[f"q{q}"] = {f"t{t}": [rng.gauss(level, 0.1) for _ in range(5)] for t in range(3)}
        found = interval(sample, lambda values: sum(values) / len(values))
        assert found is not None
        held += found.low <= 0.4 <= found.high
    assert 45 <= held <= 60
    assert interval(sample, lambda values: sum(values) / len(values)) == found
    assert interval({}, lambda values: None) is None


def test_neighbours_differ_beyond_what_their_intervals_explain() -> None:
    def token(position: int, median: float, width: float) -> Scored:
        half = width / 2
        cosine = Range(median, median - half, median + half)
        return Scored("q", "t", position, cosine, 3.0, None)

    sure = neighbours._pairs([token(0, 0.8, 0.1), token(1, -0.3, 0.1), token(3, 0.5, 0.1)])
    ((pair,),) = (found for of in sure.values() for found in of.values())
    assert pair.difference == pytest.approx(1.1)
    assert pair.noise < 0.05
    vague = neighbours._pairs([token(0, 0.3, 1.8), token(1, -0.3, 1.8)])
    ((pair,),) = (found for of in vague.values() for found in of.values())
    assert pair.difference - pair.noise < 0.05


def test_what_is_written() -> None:
    found = Finding(
        "A claim", "What it says.", ("who", "value", "n"),
        (("a|b", Range(0.1234567, -0.05, 0.3), 1200), ("c", None, 3)), OPEN, "A rule.", ("Mind.",),
    )  # fmt: skip
    text = page([], [found], "unmask findings …")
    assert "| a\\|b | +0.12 (-0.05 to +0.30) | 1,200 |" in text
    assert "**Undecided at this budget.** A rule." in text
    plain = json.loads(as_json([], [found]))["findings"][0]
    assert plain["rows"][0] == {
        "who": "a|b", "value": {"median": 0.123457, "low": -0.05, "high": 0.3}, "n": 1200,
    }  # fmt: skip
    assert plain["rows"][1]["value"] is None
    assert cell_text(0.123456) == "0.123"
    assert cell_text(Range(0.0123, -0.004, 0.03)) == "+0.012 (-0.004 to +0.030)"
