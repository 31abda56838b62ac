"""What runs in a worker process: math-verify on one text after the other.

The library's own time limit is an alarm signal with a Python handler, and some inputs
(`9^{9^{9^9}}`) hold the interpreter lock for ever, so no handler ever runs. Here the signal keeps
its default action, by which the kernel ends the process, whatever the interpreter does: should the
server be gone and kill it no more, it ends all the same.
"""

from __future__ import annotations

import re
import resource
import signal
import sys
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, Literal

from unmask_server.catalog.verifiers.numbers import last_boxed, marks_box

Question = tuple[Literal["verify", "parses"], str, str]
"""(what is asked, text, reference); for `parses` the text is the reference."""

READY = "ready"
MAX_MEMORY = 4 * 2**30
"""Bytes of address space of a worker: a large power must not take the machine's memory."""

_MIXED = re.compile(r"(?<![\w.^])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\w.]*\d)", re.ASCII)
_LATEX_MIXED = re.compile(r"(?<![\w.}^])(\d+)\s*\\[dt]?frac\s*\{(\d+)\}\s*\{(\d+)\}", re.ASCII)
_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mbox)\s*\{[^{}]*\}|\\[a-zA-Z]+")
_WORD = re.compile(r"[^\W\d_]{4,}")


def main() -> None:
    """Run a worker: its arguments are the file descriptor of its pipe, and the time limit."""
    with Connection(int(sys.argv[1])) as pipe:
        work(pipe, float(sys.argv[2]))


def work(pipe: Connection, seconds: float) -> None:
    """Answer questions until the pipe closes; one that computes for longer ends the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's to handle
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    with suppress(ValueError, OSError):  # not every system can
        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    import logging

    from math_verify import parse, verify

    # It warns at every call that its own time limit is off.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    # The first call loads most of sympy, which takes longer than any ordinary text.
    _right(parse, verify, "1", "1")
    pipe.send(READY)
    while True:
        try:
            kind, text, reference = pipe.recv()
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            if kind == "parses":
                answer = bool(_parsed(parse, text))
            else:
                answer = _right(parse, verify, text, reference)
        except Exception:
            # Whatever the library makes of a text, it is not the right answer.
            answer = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        pipe.send(answer)


def _right(parse: Any, verify: Any, text: str, reference: str) -> bool:
    gold = _parsed(parse, reference)
    if not gold:
        return False
    if marks_box(text):
        # The last box is the answer; the library would take every box for one.
        boxed = last_boxed(text)
        found = None if boxed is None else _parsed(parse, boxed)
    else:
        found = parse(improper(text), parsing_timeout=None)
    return bool(found) and bool(verify(gold, found, timeout_seconds=None))


def _parsed(parse: Any, expression: str) -> Any:
    """An expression that stands alone, parsed; empty if it is no mathematics."""
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
