"""Questions from JSONL, as people's files are."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from unmask_server.catalog.templates import as_text
from unmask_server.catalog.types import QuestionSpec, VerifierKind
from unmask_server.catalog.verifiers.gym import ORIGIN
from unmask_server.catalog.verifiers.numbers import last_boxed

QUESTION_KEYS = ("question", "problem", "prompt")
ANSWER_KEYS = ("answer", "reference", "expected_answer", "solution", "solutions")
"""Where a question and its reference are looked for; the first that is not empty is taken."""

_CALCULATIONS = re.compile(r"<<[^<>\n]*>>")
"""GSM8K's notes for a calculator, as in `48/2 = <<48/2=24>>24`."""
_MATH_LEVEL = re.compile(r"Level (\S+)")


def parse_jsonl(data: bytes) -> list[tuple[int, QuestionSpec | str]]:
    """(line from 1, question or what is wrong with it) for every line that is not blank.

    The question is in `question`, `problem` or `prompt` (text or messages) or, as token ids, in
    `prompt_tokens`; the reference in `answer`, `reference`, `expected_answer`, `solution` or the
    first of `solutions`: what follows the last `####` or is in the last box, else the whole. Other
    columns are kept as fields, as text; null ones are dropped. What is special:

    - GSM8K: its worked `answer` is kept as `solution`, without the notes for a calculator; with
      them, if there are any, as `annotated_solution`.
    - MATH: `Level 5` becomes `5`, as MATH-500 has it, and `type` is also kept as `subject`.
    - verl: `prompt` and `reward_model.ground_truth`; `data_source` is kept as `task`, and what is
      in `extra_info` as fields.
    """
    found: list[tuple[int, QuestionSpec | str]] = []
    # Only line feeds part lines: others, such as U+2028, may stand inside of a JSON string.
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if line.strip():
            found.append((number, _parse(line)))
    return found


def _parse(line: bytes) -> QuestionSpec | str:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return f"not UTF-8: {error.reason} at byte {error.start}"
    except (ValueError, RecursionError) as error:
        return f"no JSON: {error}"
    if not isinstance(row, Mapping):
        return "no JSON object"
    return _spec({key: value for key, value in row.items() if value is not None})


def _spec(fields: dict[str, Any]) -> QuestionSpec | str:
    suited = _from_verl(fields)
    name = fields.pop("name", None)
    tokens = fields.pop("prompt_tokens", None)
    if tokens is not None and not _are_ids(tokens):
        return "prompt_tokens: is no list of token ids"
    question = _first_filled(fields, QUESTION_KEYS)
    if question is None and not tokens:
        return f"no question: give one of {', '.join(QUESTION_KEYS)}, or prompt_tokens"
    texts = {key: as_text(value) for key, value in fields.items()}
    if ORIGIN in fields:
        suited = suited or VerifierKind.REASONING_GYM
        # Its answer is one of several, or none: its scorer knows.
    elif (answer := _first_filled(fields, ANSWER_KEYS)) is None:
        return f"no answer: give one of {', '.join(ANSWER_KEYS)}"
    else:
        marked = as_text(_first(fields[answer]))
        texts["answer"] = extract_reference(marked)
        if answer == "solutions" or (answer == "answer" and texts["answer"] != marked.strip()):
            # A worked solution with the answer at its end, as GSM8K has it, is both.
            texts.setdefault("solution", marked)
        if _is_math(texts, marked):
            suited = suited or VerifierKind.MATH_VERIFY
    if question is not None:
        texts["question"] = texts[question]
    _tidy(texts)
    return QuestionSpec(
        None if name is None else str(name),
        texts,
        tuple(tokens or ()) or None,
        suited.value if suited else None,
    )


def _from_verl(fields: dict[str, Any]) -> VerifierKind | None:
    """Lay out a row as verl's trainers take them; the verifier that its prompt asks for.

    Its prompt says how to answer: for GSM8K after `####`, for others in a box or likewise.
    """
    graded = fields.get("reward_model")
    if not isinstance(graded, Mapping) or graded.get("ground_truth") is None:
        return None
    del fields["reward_model"]
    info = fields.pop("extra_info", None)
    rest = dict(info) if isinstance(info, Mapping) else {}
    if "prompt" in fields:
        fields["question"] = as_text(fields.pop("prompt"))
        bare = rest.pop("question", None)
        if bare is not None:
            fields.setdefault("problem", bare)
    worked = rest.pop("answer", None)
    if worked is not None:
        fields.setdefault("solution", worked)
    fields["answer"] = graded["ground_truth"]
    source = str(fields.pop("data_source", ""))
    if source:
        fields.setdefault("task", source)
    for key, value in rest.items():
        if value is not None:
            fields.setdefault(key, value)
    return VerifierKind.HASH_ANSWER if "gsm8k" in source.lower() else VerifierKind.MATH_VERIFY


def _is_math(texts: Mapping[str, str], marked: str) -> bool:
    """Whether an answer is an expression: it stood in a box, or the row is MATH's or MATH-500's."""
    rows = texts.keys() >= {"problem", "solution", "level"} and texts.keys() & {"type", "subject"}
    return bool(rows) or ("####" not in marked and last_boxed(marked) is not None)


def _tidy(texts: dict[str, str]) -> None:
    """What GSM8K and MATH write in ways of their own, for readers and for grouping."""
    solution = texts.get("solution", "")
    if "####" in solution and (plain := _CALCULATIONS.sub("", solution)) != solution:
        texts["annotated_solution"] = solution
        texts["solution"] = plain
    if match := _MATH_LEVEL.fullmatch(texts.get("level", "")):
        texts["level"] = match[1]
        if "type" in texts:
            texts.setdefault("subject", texts["type"])


def _first_filled(fields: Mapping[str, Any], keys: Sequence[str]) -> str | None:
    return next((key for key in keys if as_text(fields.get(key, "")).strip()), None)


def _first(value: Any) -> Any:
    """The first of several solutions; messages are one text together."""
    several = isinstance(value, list) and value and not isinstance(value[0], Mapping)
    return value[0] if several else value


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and all(type(token) is int for token in value)


def extract_reference(text: str) -> str:
    """What a worked solution gives as its answer; the text itself if it marks none.

    That is the rest of the line after the last `####`, without thousands separators, or else the
    content of the last box.
    """
    text = text.strip()
    if "####" in text:
        lines = text.rpartition("####")[2].strip().splitlines() or [""]
        return re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", lines[0].strip())
    boxed = last_boxed(text)
    return boxed.strip() if boxed is not None else text
