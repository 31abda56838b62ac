"""Questions from JSONL, as people's files are."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from unmask_server.catalog.templates import as_text
from unmask_server.catalog.types import QuestionSpec
from unmask_server.catalog.verifiers.numbers import last_boxed

QUESTION_KEYS = ("question", "problem", "prompt")
ANSWER_KEYS = ("answer", "reference", "solution", "solutions")


def parse_jsonl(data: bytes) -> list[tuple[int, QuestionSpec | str]]:
    """(line from 1, question or what is wrong with it) for every line that is not blank.

    The question is in `question`, `problem` or `prompt` (text or messages), the reference in
    `answer`, `reference`, `solution` or `solutions`: what follows the last `####` or is in the last
    box, else the whole. Other fields are kept; null ones are dropped.
    """
    found: list[tuple[int, QuestionSpec | str]] = []
    text = data.decode("utf-8-sig", errors="replace")
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            found.append((number, f"no JSON: {error}"))
            continue
        found.append((number, _spec(row)))
    return found


def _spec(row: Any) -> QuestionSpec | str:
    if not isinstance(row, Mapping):
        return "no JSON object"
    fields = {key: value for key, value in row.items() if value is not None}
    name = fields.pop("name", None)
    question = next((k for k in QUESTION_KEYS if fields.get(k) not in (None, "", [])), None)
    if question is None:
        return f"no question: give one of {', '.join(QUESTION_KEYS)}"
    answer = next((k for k in ANSWER_KEYS if fields.get(k) not in (None, "", [])), None)
    if answer is None:
        return f"no answer: give one of {', '.join(ANSWER_KEYS)}"
    texts = {key: as_text(value) for key, value in fields.items()}
    reference = extract_reference(texts[answer])
    if answer == "answer" and reference != texts[answer] and "solution" not in texts:
        # GSM8K keeps the worked solution with the answer at its end.
        texts["solution"] = texts["answer"]
    texts["question"] = texts[question]
    texts["answer"] = reference
    return QuestionSpec(str(name) if name is not None else None, texts)


def extract_reference(text: str) -> str:
    """What a worked solution gives as its answer; the text itself if it marks none."""
    text = text.strip()
    if "####" in text:
        tail = text.rsplit("####", 1)[1].strip()
        return re.sub(r"(?<=\d),(?=\d{3})", "", tail)
    boxed = last_boxed(text)
    return boxed.strip() if boxed is not None else text
