"""math-verify on one text after the other, in a worker process."""

from __future__ import annotations

import logging
import re
from typing import Any

from unmask_server.catalog.verifiers.numbers import last_boxed, marks_box

_MIXED = re.compile(r"(?<![\w.^])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\w.]*\d)", re.ASCII)
_LATEX_MIXED = re.compile(r"(?<![\w.}^])(\d+)\s*\\[dt]?frac\s*\{(\d+)\}\s*\{(\d+)\}", re.ASCII)
_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mbox)\s*\{[^{}]*\}|\\[a-zA-Z]+")
_WORD = re.compile(r"[^\W\d_]{4,}")


def load() -> None:
    """Load the library; the first call loads most of sympy, which takes longer than any text."""
    # It warns at every call that its own time limit is off.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    right("1", "1")


def right(text: str, reference: str) -> bool:
    """Whether a text's answer is the reference."""
    from math_verify import parse, verify

    gold = _parsed(reference)
    if not gold:
        return False
    if marks_box(text):
        # The last box is the answer; the library would take every box for one.
        boxed = last_boxed(text)
        found = None if boxed is None else _parsed(boxed)
    else:
        found = parse(improper(text), parsing_timeout=None)
    return bool(found) and bool(verify(gold, found, timeout_seconds=None))


def parses(reference: str) -> bool:
    """Whether a reference is something that can be compared."""
    return bool(_parsed(reference))


def _parsed(expression: str) -> Any:
    """An expression that stands alone, parsed; empty if it is no mathematics."""
    from math_verify import parse

    return parse(as_math(improper(expression)), parsing_timeout=None)


def as_math(expression: str) -> str:
    """A bare expression marked as mathematics, as the parser wants it.

    Words are left unmarked: within mathematics `see figure` is a product of nine variables.
    """
    if "$" in expression or marks_box(expression):
        return expression
    if _WORD.search(_TEXT.sub(" ", expression)):
        return expression
    return f"${expression}$"


def improper(text: str) -> str:
    r"""The text with its mixed numbers as fractions: `2 2/3` and `2\frac{2}{3}` become 8/3.

    The parser would take the fragments, 2 and 2/3, for answers of their own.
    """
    text = _LATEX_MIXED.sub(lambda m: rf"\frac{{{_top(m)}}}{{{m[3]}}}", text)
    return _MIXED.sub(lambda m: f"{_top(m)}/{m[3]}", text)


def _top(mixed: re.Match[str]) -> int:
    return int(mixed[1]) * int(mixed[3]) + int(mixed[2])
