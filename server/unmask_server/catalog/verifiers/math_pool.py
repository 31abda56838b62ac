"""Processes for math-verify, each with a hard time limit for each text."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import Pipe

from unmask_server.catalog.verifiers import math_worker
from unmask_server.catalog.verifiers.math_worker import READY, Question

TIME_LIMIT = 5.0
"""Seconds for one text, then it has failed. Usual ones take milliseconds."""
START_LIMIT = 120.0
"""Seconds for a worker to load the library; it takes one or two unless the machine is busy."""
WORKERS = 2
_PROGRAM = f"from {math_worker.__name__} import main; main()"


class MathPool:
    """Workers, started when first needed. Callable from threads.

    A worker that does not answer in time is killed and replaced; the other one goes on meanwhile.
    """

    def __init__(self) -> None:
        self._free = threading.Semaphore(WORKERS)
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._closed = False

    def verify(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        """Whether each (text, reference) is right; what takes too long is wrong.

        Raises:
            RuntimeError: no worker could be started, or the pool is closed.

        """
        return [self._ask(("verify", text, reference)) for text, reference in pairs]

    def parses(self, reference: str) -> bool:
        """Whether a reference is something that can be compared. Raises: as `verify`."""
        return self._ask(("parses", reference, ""))

    def close(self) -> None:
        """End the workers; those at work end when they have answered."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.kill()

    def _ask(self, question: Question) -> bool:
        # A worker a question: a batch with bombs leaves room for others between any two texts.
        with self._worker() as worker:
            return worker.ask(question)

    @contextmanager
    def _worker(self) -> Iterator[_Worker]:
        with self._free:
            with self._lock:
                if self._closed:
                    raise RuntimeError("the grader is closed")
                worker = self._idle.pop() if self._idle else None
            if worker is None or not worker.alive:
                worker = _Worker()
            try:
                yield worker
            except BaseException:
                worker.kill()
                raise
            with self._lock:
                keep = worker.alive and not self._closed
                if keep:
                    self._idle.append(worker)
            if not keep:
                worker.kill()


class _Worker:
    """One process; it answers one question after the other."""

    def __init__(self) -> None:
        # A program of its own: multiprocessing would import this process's main module again,
        # and a script that starts a server without a guard would start another one.
        self._pipe, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, str(theirs.fileno()), str(TIME_LIMIT)],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        self.alive = True
        if self._receive(START_LIMIT) != READY:
            self.kill()
            raise RuntimeError("a worker for math-verify did not start; is math-verify installed?")

    def ask(self, question: Question) -> bool:
        """The answer; False, and the worker is dead, if it took too long or crashed."""
        try:
            self._pipe.send(question)
        except OSError:
            self.kill()
            return False
        answer = self._receive(TIME_LIMIT)
        if answer is None:
            self.kill()
        return answer is True

    def kill(self) -> None:
        """End the process, whatever it does. Harmless when repeated."""
        self.alive = False
        self._process.kill()
        self._process.wait()
        self._pipe.close()

    def _receive(self, seconds: float) -> object:
        """What the worker sends within that time; None if nothing."""
        try:
            return self._pipe.recv() if self._pipe.poll(seconds) else None
        except (EOFError, OSError):
            return None
