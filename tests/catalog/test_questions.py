"""Questions from files as people have them."""

from __future__ import annotations

import pytest
from unmask_server.catalog.questions import extract_reference, parse_jsonl
from unmask_server.catalog.types import QuestionSpec


def test_files_load_line_by_line_whatever_their_columns() -> None:
    data = "\r\n".join(
        [
            '{"question":"q","answer":"2 * 617 = 1234\\n#### 1,234"}',
            '{"problem":"q","solution":"\\\\boxed{5}","level":3}',
            "{broken",
            "",
            '{"prompt":[{"role":"user","content":"hi"}],"solution":"x","symlink_target":null}',
            '{"question":"q","answer":5}',
            '{"question":"  ","answer":"1"}',
            "[1]",
        ]
    ).encode("utf-8-sig")
    parsed = dict(parse_jsonl(data))
    assert sorted(parsed) == [1, 2, 3, 5, 6, 7, 8]
    first = parsed[1]
    assert isinstance(first, QuestionSpec)
    assert first.fields["answer"] == "1234"
    assert first.fields["solution"].startswith("2 * 617")
    second = parsed[2]
    assert isinstance(second, QuestionSpec)
    assert (second.fields["answer"], second.fields["level"]) == ("5", "3")
    assert isinstance(parsed[3], str)
    messages = parsed[5]
    assert isinstance(messages, QuestionSpec)
    assert messages.fields["question"] == "hi"
    assert "symlink_target" not in messages.fields
    numeric = parsed[6]
    assert isinstance(numeric, QuestionSpec)
    assert numeric.fields["answer"] == "5"
    assert isinstance(parsed[8], str)


@pytest.mark.parametrize(
    ("text", "reference"),
    [("#### 7", "7"), (r"so \boxed{5}", "5"), ("12", "12"), ("a #### 1 #### 2", "2")],
)
def test_the_reference_is_what_a_solution_marks_as_its_answer(text: str, reference: str) -> None:
    assert extract_reference(text) == reference
