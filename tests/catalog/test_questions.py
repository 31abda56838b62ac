"""Questions from files as people have them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from unmask_server.catalog.questions import extract_reference, parse_jsonl
from unmask_server.catalog.types import QuestionSpec


def parsed(*rows: Any) -> list[QuestionSpec | str]:
    lines = "\n".join(json.dumps(row) for row in rows)
    return [found for _, found in parse_jsonl(lines.encode())]


def question(row: Any) -> QuestionSpec:
    (found,) = parsed(row)
    assert isinstance(found, QuestionSpec)
    return found


def test_files_load_line_by_line_whatever_their_columns() -> None:
    data = "\r\n".join(
        [
            '{"question":"q","answer":"2 * 617 = 1234\\n#### 1,234"}',
            '{"problem":"q","solution":"\\\\boxed{5}","level":3}',
            "{broken",
            "",
            '{"prompt":[{"role":"user","content":"hi"}],"solution":"x","symlink_target":null}',
            '{"question":"q","answer":5}',
            "[1]",
        ]
    ).encode("utf-8-sig")
    found = dict(parse_jsonl(data))
    assert list(found) == [1, 2, 3, 5, 6, 7]
    assert found[1] == QuestionSpec(
        None,
        {"question": "q", "answer": "1234", "solution": "2 * 617 = 1234\n#### 1,234"},
    )
    assert found[2] == QuestionSpec(
        None,
        {
            "problem": "q",
            "question": "q",
            "solution": r"\boxed{5}",
            "answer": "5",
            "level": "3",
        },
        suited="math_verify",
    )
    assert str(found[3]).startswith("no JSON")
    assert found[5] == QuestionSpec(
        None, {"prompt": "hi", "question": "hi", "solution": "x", "answer": "x"}
    )
    assert found[6] == QuestionSpec(None, {"question": "q", "answer": "5"})
    assert found[7] == "no JSON object"


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"answer": "1"}, "no question"),
        ({"question": "  ", "answer": "1"}, "no question"),
        ({"question": [], "answer": "1"}, "no question"),
        ({"question": "q"}, "no answer"),
        ({"question": "q", "answer": None, "solution": ""}, "no answer"),
        ({"prompt_tokens": [1, True], "answer": "1"}, "prompt_tokens"),
        ({"prompt_tokens": "1 2", "answer": "1"}, "prompt_tokens"),
    ],
)
def test_a_line_says_what_it_lacks(row: Any, problem: str) -> None:
    (found,) = parsed(row)
    assert isinstance(found, str)
    assert problem in found


def test_a_false_or_zero_answer_is_an_answer() -> None:
    assert question({"question": "q", "answer": 0}).fields["answer"] == "0"


def test_a_question_may_be_given_as_tokens() -> None:
    found = question({"prompt_tokens": [5, 6], "answer": 7})
    assert found.prompt_tokens == (5, 6)
    assert found.fields == {"answer": "7"}


def test_the_first_of_several_solutions_is_the_reference() -> None:
    found = question({"problem": "q", "solutions": [r"so \boxed{5}", r"or \boxed{6}"]})
    assert found.fields["answer"] == "5"
    assert found.fields["solution"] == r"so \boxed{5}"


def test_a_line_separator_inside_of_a_text_is_text() -> None:
    line = '{"question":"a\u2028b\x85c","answer":"1"}'.encode()
    [(number, found)] = parse_jsonl(line)
    assert number == 1
    assert isinstance(found, QuestionSpec)
    assert found.fields["question"] == "a\u2028b\x85c"


def test_a_line_that_is_not_utf_8_fails_by_itself() -> None:
    found = dict(parse_jsonl(b'{"question":"\xff","answer":"1"}\n{"question":"q","answer":"1"}'))
    assert "UTF-8" in str(found[1])
    assert isinstance(found[2], QuestionSpec)


def test_deep_nesting_is_an_error_of_its_line() -> None:
    ((_, found),) = parse_jsonl(b"[" * 100_000)
    assert isinstance(found, str)


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("#### 7", "7"),
        (r"so \boxed{5}", "5"),
        ("12", "12"),
        ("a #### 1 #### 2", "2"),
        ("#### 1,234,567\n(see below)", "1234567"),
        ("#### (1,234, 5)", "(1234, 5)"),
        (" Paris ", "Paris"),
    ],
)
def test_the_reference_is_what_a_solution_marks_as_its_answer(text: str, reference: str) -> None:
    assert extract_reference(text) == reference
