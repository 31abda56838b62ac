"""math-verify, in processes of its own with a hard time limit.

Its own limit is an alarm signal, which works only on a process's main thread, and some inputs
(`9^{9^{9^9}}`) hold the interpreter lock for ever: so each text is graded on the main thread of a
worker, and a worker that does not answer in time is killed.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from fractions import Fraction
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from unmask_server.catalog.verifiers.numbers import last_boxed, parse_number

TIME_LIMIT = 5.0
"""Seconds for one text, then it has failed."""
START_LIMIT = 60.0
"""Seconds for a worker to load the library."""
WORKERS = 2

_MIXED = re.compile(r"(?<![\w.])[-+]?\d+\s+\d+\s*/\s*\d+(?![\w.])")
_LATEX_MIXED = re.compile(r"(?<![\w.}])([-+]?\d+)\s*\\[dt]?frac\{(\d+)\}\{(\d+)\}")


class MathPool:
    """Workers, started when first needed. Callable from threads."""

    def __init__(self) -> None:
        self._free = threading.Semaphore(WORKERS)
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._closed = False

    def verify(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        """Whether each (text, reference) is right; too slow is wrong."""
        if not pairs:
            return []
        with self._free:
            worker = self._take()
            answers = []
            for text, reference in pairs:
                answer = worker.ask(("verify", text, reference))
                if answer is None:
                    worker.kill()
                    worker = _Worker()
                answers.append(bool(answer))
            self._give(worker)
            return answers

    def parses(self, reference: str) -> bool:
        """Whether a reference is something that can be compared."""
        with self._free:
            worker = self._take()
            answer = worker.ask(("parses", reference, ""))
            if answer is None:
                worker.kill()
            else:
                self._give(worker)
            return bool(answer)

    def close(self) -> None:
        """End the workers."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.kill()

    def _take(self) -> _Worker:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return _Worker()

    def _give(self, worker: _Worker) -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(worker)
                return
        worker.kill()


class _Worker:
    """One process; it answers one question after the other."""

    def __init__(self) -> None:
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process: BaseProcess = context.Process(target=_work, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        if not self._pipe.poll(START_LIMIT) or self._receive() != "ready":
            self.kill()
            raise RuntimeError("a worker for math-verify did not start")

    def ask(self, question: tuple[str, str, str]) -> bool | None:
        """The answer; None if it took too long or the worker died."""
        try:
            self._pipe.send(question)
            return self._receive() if self._pipe.poll(TIME_LIMIT) else None
        except (BrokenPipeError, EOFError, OSError):
            return None

    def kill(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def _receive(self) -> Any:
        try:
            return self._pipe.recv()
        except EOFError:
            return None


def _work(pipe: Connection) -> None:
    from math_verify import parse, verify

    pipe.send("ready")
    while True:
        try:
            kind, text, reference = pipe.recv()
        except EOFError:
            return
        try:
            if kind == "parses":
                pipe.send(bool(parse(as_math(text), parsing_timeout=None)))
            else:
                pipe.send(_verify(parse, verify, text, reference))
        except Exception:
            # Whatever the library makes of a text, it is not the right answer.
            pipe.send(False)


def _verify(parse: Any, verify: Any, text: str, reference: str) -> bool:
    boxed = last_boxed(text)
    answer = text if boxed is None else boxed
    mine, theirs = _mixed(answer), _mixed(reference)
    if mine is not None or theirs is not None:
        # math-verify takes the fragments of a mixed number for answers of their own.
        return (mine if mine is not None else parse_number(answer)) == (
            theirs if theirs is not None else parse_number(reference)
        )
    gold = parse(as_math(reference), parsing_timeout=None)
    found = parse(answer if boxed is None else as_math(boxed), parsing_timeout=None)
    return bool(gold) and bool(verify(gold, found, timeout_seconds=None))


def as_math(text: str) -> str:
    """A bare expression marked as mathematics, as the parser wants it."""
    return text if "$" in text or "\\boxed" in text else f"${text}$"


def _mixed(text: str) -> Fraction | None:
    """The last mixed number in a text, if there is one."""
    last = None
    for match in _MIXED.finditer(text):
        last = match.group()
    for latex in _LATEX_MIXED.finditer(text):
        last = f"{latex.group(1)} {latex.group(2)}/{latex.group(3)}"
    return None if last is None else parse_number(last)
