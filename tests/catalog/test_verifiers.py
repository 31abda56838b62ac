"""From texts to rewards. Many cases are reports from people's training runs."""

from __future__ import annotations

from fractions import Fraction

import pytest
from unmask_server.catalog.errors import InvalidArgument
from unmask_server.catalog.types import Verifier, VerifierKind
from unmask_server.catalog.verifiers import (
    Grader,
    canonical_options,
    check_options,
    check_reference,
)
from unmask_server.catalog.verifiers.numbers import last_boxed, parse_number
from unmask_server.engines.base import FinishReason

STOP, LENGTH = FinishReason.STOP, FinishReason.LENGTH


def verifier(kind: VerifierKind, **options: str) -> Verifier:
    return Verifier("ver-x", 1, None, kind, 1, options, 0.0)


def grade(grader: Grader, kind: VerifierKind, text: str, reference: str, **options: str) -> float:
    return grader.grade_many(verifier(kind, **options), [(text, reference, STOP)])[0]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,234", 1234),
        ("-3.50", Fraction(-7, 2)),
        ("$5.", 5),
        ("-$5", -5),
        ("2 2/3", Fraction(8, 3)),
        ("1/2", Fraction(1, 2)),
        ("28%", 28),
        ("$-5", -5),
        (".5", Fraction(1, 2)),
        ("1e3", 1000),
        ("1{,}234", 1234),
        (r"\frac{1}{2}", Fraction(1, 2)),
        (r"-2\frac{2}{3}", Fraction(-8, 3)),
        ("0.1000000000000000000001", Fraction("0.1000000000000000000001")),
        ("−4", -4),
        ("1/0", None),
        ("", None),
        ("nan", None),
        ("5 apples", None),
        ("9" * 5000, None),
        ("1e400", None),
        ("twelve", None),
    ],
)
def test_numbers_are_read_exactly(text: str, value: Fraction | None) -> None:
    assert parse_number(text) == value


@pytest.mark.parametrize(
    ("text", "reference", "reward"),
    [
        ("3 + 4 = 7, so #### 7", "7", 1.0),
        ("#### 3 wait #### 7", "7", 1.0),
        ("2+40=42\n#### 42\n" + "and so on " * 48, "42", 1.0),
        ("#### $1,234.00", "1234", 1.0),
        ("the answer is 7", "7", 0.0),
        ("####", "7", 0.0),
        ("#### none, though I saw 7", "7", 0.0),
        ("#### **7**", "7", 1.0),
        ("#### 7 #### 8", "7", 0.0),
        ("", "7", 0.0),
    ],
)
def test_hash_answer_takes_the_number_after_the_last_mark(
    grader: Grader, text: str, reference: str, reward: float
) -> None:
    assert grade(grader, VerifierKind.HASH_ANSWER, text, reference) == reward


@pytest.mark.parametrize(
    ("text", "reference", "reward"),
    [
        ("first 3, then 5", "5", 1.0),
        ("it is 2 2/3", "8/3", 1.0),
        ("it is 2 2/3", "2", 0.0),
        ("so 4.", "4", 1.0),
        ("we are left with 7 - 4", "4", 1.0),
        ("x = -4", "-4", 1.0),
        ("that is 50%.", "50", 1.0),
        ("that is 50%.", "0.5", 0.0),
        ("it costs $1,234.50!", "1234.5", 1.0),
        ("0.1 + 0.2 is 0.30000000000000004", "0.3", 0.0),
        ("none", "4", 0.0),
        ("", "4", 0.0),
    ],
)
def test_last_number(grader: Grader, text: str, reference: str, reward: float) -> None:
    assert grade(grader, VerifierKind.LAST_NUMBER, text, reference) == reward


@pytest.mark.parametrize(
    ("text", "reference", "reward"),
    [
        ("I considered 42 but have no idea.", "42", 0.0),
        (r"\fbox{42}", "42", 1.0),
        (r"\boxed{3} wait no \boxed{5}", "5", 1.0),
        (r"\boxed{3} wait no \boxed{5}", "3", 0.0),
        (r"\boxed{5", "5", 0.0),
        (r"\boxed{3} wait no \boxed{5", "3", 0.0),
        (r"\boxed{}", "5", 0.0),
        (r"\boxed{\{1, 2\}}", r"\{1,2\}", 1.0),
        (r"\boxed{\$1{,}234}", "1234", 1.0),
        (r"\boxed{0.5}", r"\frac{1}{2}", 1.0),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}", 1.0),
        (r"\boxed{\text{blue}}", "blue", 1.0),
    ],
)
def test_boxed_counts_only_the_last_closed_box(
    grader: Grader, text: str, reference: str, reward: float
) -> None:
    assert grade(grader, VerifierKind.BOXED, text, reference) == reward


def test_boxes_nest() -> None:
    assert last_boxed(r"so \boxed{\frac{1}{2}} ok") == r"\frac{1}{2}"


def test_exact_and_regex(grader: Grader) -> None:
    assert grade(grader, VerifierKind.EXACT, " a  b\n", "a b") == 1.0
    assert grade(grader, VerifierKind.EXACT, "A", "a") == 0.0
    assert grade(grader, VerifierKind.EXACT, "A", "a", ignore_case="true") == 1.0
    assert grade(grader, VerifierKind.REGEX, "x=1 x=2", "2", pattern=r"x=(\d)") == 1.0
    assert grade(grader, VerifierKind.REGEX, "none", "2", pattern=r"x=(\d)") == 0.0


def test_a_pattern_cannot_hang(grader: Grader) -> None:
    assert grade(grader, VerifierKind.REGEX, "a" * 5000 + "!", "x", pattern="(a+)+$") == 0.0


def test_a_generation_that_was_cut_off_has_failed_unless_the_verifier_says_otherwise(
    grader: Grader,
) -> None:
    items = [("#### 7", "7", LENGTH)]
    plain = verifier(VerifierKind.HASH_ANSWER)
    lenient = verifier(VerifierKind.HASH_ANSWER, truncated="grade")
    assert grader.grade_many(plain, items) == [0.0]
    assert grader.grade_many(lenient, items) == [1.0]


@pytest.mark.parametrize(
    ("kind", "options", "field"),
    [
        (VerifierKind.REGEX, {}, "options['pattern']"),
        (VerifierKind.REGEX, {"pattern": "("}, "options['pattern']"),
        (VerifierKind.EXACT, {"pattern": "a"}, "options['pattern']"),
        (VerifierKind.EXACT, {"ignore_case": "yes"}, "options['ignore_case']"),
        (VerifierKind.BOXED, {"truncated": "maybe"}, "options['truncated']"),
    ],
)
def test_wrong_options_are_refused(kind: VerifierKind, options: dict[str, str], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_options(kind, options)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("kind", "reference"),
    [
        *((kind, " ") for kind in VerifierKind if kind.compares),
        (VerifierKind.LAST_NUMBER, "see figure"),
        (VerifierKind.HASH_ANSWER, "7 apples"),
        (VerifierKind.BOXED, "$$"),
    ],
)
def test_a_reference_that_grades_nothing_is_told(
    grader: Grader, kind: VerifierKind, reference: str
) -> None:
    assert check_reference(verifier(kind), reference, grader)


def test_a_default_that_is_spelt_out_is_the_same_verifier() -> None:
    spelt_out = {"truncated": "fail", "ignore_case": "false"}
    assert canonical_options(spelt_out) == {}
    assert canonical_options({"truncated": "grade"}) == {"truncated": "grade"}
