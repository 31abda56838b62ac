"""Whatever is in a file, a template or an answer, parsers read it or say what is wrong with it."""

from __future__ import annotations

import contextlib
import gzip
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unmask.question_files import read_questions
from unmask.sharing.dumps import Trainer, read_dump
from unmask_server.api.given_distributions import _lines
from unmask_server.catalog.errors import InvalidArgument
from unmask_server.catalog.questions import parse_jsonl
from unmask_server.catalog.settings import question_entry
from unmask_server.catalog.templates import MAX_TEMPLATE, check_template, render_context
from unmask_server.catalog.types import Verifier, VerifierKind
from unmask_server.catalog.verifiers.grading import check_options
from unmask_server.catalog.verifiers.numbers import (
    last_boxed,
    last_number,
    leading_number,
    parse_number,
)

TEXT = st.text(max_size=30) | st.sampled_from(
    ["", "\ud800", "\0", "#### 3", "\\boxed{3}", "9" * 500]
)
KEYS = st.sampled_from(
    [
        "question",
        "problem",
        "prompt",
        "prompt_tokens",
        "answer",
        "solution",
        "solutions",
        "name",
        "reward_model",
        "ground_truth",
        "extra_info",
        "data_source",
        "level",
        "content",
        "role",
        "text",
        "prompts",
        "responses",
        "samples",
        "tokens",
        "response_length",
        "reward",
        "status",
        "score",
        "completion_ids",
        "loss_mask",
        "logprobs",
        "finish_reason",
        "metadata",
    ]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | TEXT, inner, max_size=5),
    max_leaves=20,
)
LINES = st.lists(JSON.map(json.dumps) | TEXT, max_size=4).map(
    lambda lines: "\n".join(lines).encode(errors="surrogatepass")
)
BYTES = LINES | st.binary(max_size=60) | st.just(b"[" * 100_000)
VERIFIER = Verifier("ver-1", None, VerifierKind.EXACT, 1, {}, 1, 0.0)
FIELDS = {"question": "q 1 2", "answer": "3", "hint": "a" * 100}
PARTS = st.sampled_from(
    [
        "{{ question }}",
        "{{ answer",
        "{{ hint * 9 }}",
        "{% for x in hint %}",
        "{% endfor %}",
        "{{ x }}",
        "{% if answer %}",
        "{% endif %}",
        "{% set a = hint ~ hint %}",
        "{{ a ~ a }}",
        "{{ loop.index }}",
        "{{ hint | upper }}",
        "{{ hint | replace('a', hint) }}",
        "{{ ''.join(hint) }}",
        "{{ self }}",
        "{% macro m() %}{% endmacro %}",
        "{{ hint[0:2] }}",
        "{{ 9 ** 99 }}",
        "{{ 1 / 0 }}",
        "{#",
        "#}",
        "{% block b %}",
        "{% endblock %}",
        "{% filter upper %}",
        "{% endfilter %}",
        "{% raw %}",
        "text",
    ]
)


@given(BYTES)
def test_lines_of_questions(data: bytes) -> None:
    for _, spec in parse_jsonl(data):
        if not isinstance(spec, str):
            with contextlib.suppress(InvalidArgument):
                # What may be kept can be sent back.
                for key, value in question_entry(spec, VERIFIER).values["fields"].items():
                    key.encode()
                    value.encode()


@given(BYTES)
def test_lines_of_distributions(data: bytes) -> None:
    with contextlib.suppress(InvalidArgument):
        _lines(data, 1)


@given(st.lists(PARTS | TEXT, max_size=8).map("".join))
def test_templates(template: str) -> None:
    try:
        check_template(template, "template")
        made = render_context(template, FIELDS, question_id="que-1")
    except InvalidArgument:
        return
    longest = max(map(len, FIELDS.values()))
    assert len(made) <= (len(template) + MAX_TEMPLATE) * longest


@given(st.text(alphabet="0123456789.,/-+eE$% \\frac{}#boxed٣½", max_size=60) | TEXT)
def test_numbers(text: str) -> None:
    for read in (parse_number, last_number, leading_number, last_boxed):
        read(text)


@given(st.text(alphabet="ab(|)*+?{}[]^$\\PpLdws0123456789,\0é", max_size=30))
def test_patterns(pattern: str) -> None:
    with contextlib.suppress(InvalidArgument):
        check_options(VerifierKind.REGEX, {"pattern": pattern})


@pytest.mark.parametrize("name", ["q.jsonl", "q.json", "q.jsonl.gz", "q.parquet", "q.tar", "q"])
@settings(max_examples=30)
@given(BYTES, st.booleans())
def test_files_of_questions(name: str, data: bytes, zipped: bool) -> None:
    for_file(name, gzip.compress(data) if zipped else data, read_questions)


@pytest.mark.parametrize("trainer", ["verl", "slime", "trl"])
@settings(max_examples=40)
@given(BYTES)
def test_dumps_of_trainers(trainer: Trainer, data: bytes) -> None:
    for name in ("d.jsonl", "d.json"):
        for_file(name, data, lambda path: list(read_dump(trainer, path)))


def for_file(name: str, data: bytes, read: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        with contextlib.suppress(OSError, ValueError):
            read(path)
