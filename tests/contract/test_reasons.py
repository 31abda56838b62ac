"""Every reason means one thing, is given by some code, and stands in the docs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from unmask_server.reasons import Meaning, Reason, Retry

from tools.contract.reasons import table

ROOT = Path(__file__).parents[2]
SERVER = ROOT / "server/unmask_server"


def used() -> Iterator[str]:
    """Names after `Reason.` in the server's code, and of what may be looked for in vain."""
    for path in SERVER.rglob("*.py"):
        if path.name == "reasons.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "Reason":
                yield node.attr
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "NotFound":
                kind = node.args[0]
                if isinstance(kind, ast.Constant):
                    yield Reason.not_found(kind.value).name
    for table_name in ("policy", "teacher", "question", "verifier"):
        # Things of the catalog, by the tables that they are in.
        yield Reason.not_found(table_name).name


def test_every_reason_is_given_by_some_code_and_no_other() -> None:
    assert set(used()) - {"not_found"} == {reason.name for reason in Reason}


def test_no_two_reasons_mean_the_same() -> None:
    assert len({reason.value for reason in Reason}) == len(Reason.__members__)


@pytest.mark.parametrize("reason", Reason, ids=lambda reason: reason.name)
def test_a_reason_is_named_as_google_has_it_and_says_what_to_do(reason: Reason) -> None:
    meaning: Meaning = reason.value
    assert re.fullmatch(r"[A-Z][A-Z0-9_]+[A-Z0-9]", reason.name)
    assert len(reason.name) <= 63
    for text in (meaning.when, meaning.do):
        assert text[0].isupper() or text[0] == "`" or text.split()[0][0].isupper()
        assert text.endswith((".", ")."))
    assert (meaning.retry is Retry.LATER) == ("RetryInfo" in meaning.details)


def test_the_contract_names_reasons_that_there_are() -> None:
    named: set[str] = set()
    for path in (ROOT / "proto/unmask/v1").glob("*.proto"):
        comments = re.sub(r"\n *// ", " ", path.read_text())
        for inside in re.findall(r"\(([A-Z_]+(?:, [A-Z_]+)*)\)", comments):
            named |= set(inside.split(", "))
    codes = {reason.value.code for reason in Reason}
    kinds = {name for name in named if "_" in name} - codes
    assert {name for name in kinds if name in Reason.__members__} >= {
        "TOKENIZER_MISMATCH",
        "GROWTH_ENDED",
        "GENERATION_INCOMPLETE",
    }
    # Values of enums stand in brackets, too.
    assert {name for name in kinds if name not in Reason.__members__} <= {"ENTROPY_MATCHED"}


def test_the_docs_have_the_table_of_the_code() -> None:
    assert table() in (ROOT / "docs/errors.md").read_text()


@pytest.mark.slow
def test_the_pages_are_current() -> None:
    command = [sys.executable, "-m", "tools.contract.pages", "--check"]
    subprocess.run(command, cwd=ROOT, check=True)
