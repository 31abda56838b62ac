"""Questions in the formats of GSM8K, MATH, MATH-500 and verl; the texts are our own."""

from __future__ import annotations

import json
from typing import Any

from unmask_server.catalog.questions import parse_jsonl
from unmask_server.catalog.types import QuestionSpec

GSM8K = {
    "question": "A shelf has 48 books. Half of them are lent out, and 1,210 more arrive. "
    "How many stand there?",
    "answer": "Lent out are 48/2 = <<48/2=24>>24 books.\n"
    "There stand 24+1210 = <<24+1210=1234>>1,234 books.\n#### 1,234",
}
SOCRATIC = {
    "question": "A pie costs $3. What do 4 cost?",
    "answer": "What do four pies cost? ** They cost 4 * $3 = $<<4*3=12>>12.\n#### 12",
}
MATH = {
    "problem": "What is $\\frac{1}{4} + \\frac14$?",
    "level": "Level 2",
    "type": "Prealgebra",
    "solution": "Two quarters are $\\boxed{\\frac{1}{2}}$.",
}
MATH_500 = {
    "problem": "Expand $(x+1)^2$.",
    "solution": "It is $x^2 + 2x + 1$, so $\\boxed{x^2+2x+1}$.",
    "answer": "x^2+2x+1",
    "subject": "Algebra",
    "level": 3,
    "unique_id": "test/algebra/9001.json",
}
VERL_GSM8K = {
    "data_source": "openai/gsm8k",
    "prompt": [{"role": "user", "content": 'What do 4 pies at $3 cost? Answer after "####".'}],
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "12"},
    "extra_info": {
        "split": "train",
        "index": 7,
        "question": "What do 4 pies at $3 cost?",
        "answer": "They cost 4 * 3 = <<4*3=12>>12.\n#### 12",
    },
}
DAPO = {
    "data_source": "math_dapo",
    "prompt": [
        {"role": "system", "content": "Solve it step by step."},
        {"role": "user", "content": "How many primes are below 20?"},
    ],
    "ability": "MATH",
    "reward_model": {"ground_truth": "8", "style": "rule-lighteval/MATH_v2"},
    "extra_info": {"index": "9a9b6eb4"},
}


def parsed(row: dict[str, Any]) -> QuestionSpec:
    ((_, found),) = parse_jsonl(json.dumps(row).encode())
    assert isinstance(found, QuestionSpec)
    return found


def test_gsm8k_shows_its_solution_without_the_notes_for_a_calculator() -> None:
    found = parsed(GSM8K)
    assert found.fields == {
        "question": GSM8K["question"],
        "answer": "1234",
        "solution": "Lent out are 48/2 = 24 books.\nThere stand 24+1210 = 1,234 books.\n#### 1,234",
        "annotated_solution": GSM8K["answer"],
    }
    assert found.suited is None  # last_number


def test_gsm8k_socratic_keeps_its_questions() -> None:
    assert parsed(SOCRATIC).fields["solution"] == (
        "What do four pies cost? ** They cost 4 * $3 = $12.\n#### 12"
    )


def test_angle_brackets_elsewhere_are_left_alone() -> None:
    found = parsed({"question": "q", "answer": "1", "solution": "1 <<2 and 3>> 2, so \\boxed{1}"})
    assert found.fields["solution"] == "1 <<2 and 3>> 2, so \\boxed{1}"


def test_math_is_tagged_alike_in_both_of_its_formats() -> None:
    old, new = parsed(MATH), parsed(MATH_500)
    assert old.fields == {
        **MATH,
        "question": MATH["problem"],
        "answer": "\\frac{1}{2}",
        "level": "2",
        "subject": "Prealgebra",
    }
    assert new.fields["answer"] == "x^2+2x+1"
    assert (new.fields["level"], new.fields["subject"]) == ("3", "Algebra")
    assert new.fields["unique_id"] == "test/algebra/9001.json"
    assert old.suited == new.suited == "math_verify"


def test_verl_rows_keep_what_they_hold_about_the_question() -> None:
    found = parsed(VERL_GSM8K)
    assert found.fields == {
        "question": 'What do 4 pies at $3 cost? Answer after "####".',
        "problem": "What do 4 pies at $3 cost?",
        "answer": "12",
        "solution": "They cost 4 * 3 = 12.\n#### 12",
        "annotated_solution": "They cost 4 * 3 = <<4*3=12>>12.\n#### 12",
        "task": "openai/gsm8k",
        "ability": "math",
        "split": "train",
        "index": "7",
    }
    assert found.suited == "hash_answer"


def test_dapo_rows_have_messages_for_a_prompt() -> None:
    found = parsed(DAPO)
    assert found.fields == {
        "question": "Solve it step by step.\nHow many primes are below 20?",
        "answer": "8",
        "task": "math_dapo",
        "ability": "MATH",
        "index": "9a9b6eb4",
    }
    assert found.suited == "math_verify"


def test_a_row_without_a_ground_truth_is_no_verl_row() -> None:
    ((_, found),) = parse_jsonl(b'{"prompt":"q","reward_model":{"style":"model"}}')
    assert isinstance(found, str)
    assert "no answer" in found
