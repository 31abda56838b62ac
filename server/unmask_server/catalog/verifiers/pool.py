"""Processes for graders that may be slow or hang, with a hard time limit for each question."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import Pipe
from typing import Any

from unmask_server.catalog.verifiers import worker as program
from unmask_server.catalog.verifiers.worker import READY, Question

TIME_LIMIT = 5.0
"""Seconds for one question, then it has failed. Usual ones take milliseconds."""
START_LIMIT = 120.0
"""Seconds for a worker to load a library; it takes one or two unless the machine is busy."""
WORKERS = 2
_PROGRAM = f"from {program.__name__} import main; main()"


@dataclass(frozen=True, slots=True)
class Answered:
    """What a function returned."""

    value: Any


@dataclass(frozen=True, slots=True)
class Failed:
    """Why it returned nothing."""

    reason: str


TOOK_TOO_LONG = Failed("it took too long, or its process ended")


class WorkerPool:
    """Workers, started when first needed. Callable from threads.

    A worker that does not answer in time is killed and replaced; the other one goes on meanwhile.
    """

    def __init__(self) -> None:
        self._free = threading.Semaphore(WORKERS)
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._closed = False

    def ask(self, module: str, call: str, *args: Any) -> Answered | Failed:
        """What a function of a module of this package answers, in a worker.

        Args:
            module: its name within the package; its `load` has been called.
            call: the function's name.
            args: its arguments; its result comes back as JSON.

        Raises:
            RuntimeError: no worker could be started, or the module cannot be loaded, or the pool is
                closed.

        """
        # A worker a question: a batch with bombs leaves room for others between any two texts.
        with self._worker(module) as worker:
            return worker.ask(module, (module, call, args))

    def close(self) -> None:
        """End the workers; those at work end when they have answered."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.kill()

    @contextmanager
    def _worker(self, module: str) -> Iterator[_Worker]:
        with self._free:
            worker = self._take(module)
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

    def _take(self, module: str) -> _Worker | None:
        """An idle worker, one that has loaded the module if there is one."""
        with self._lock:
            if self._closed:
                raise RuntimeError("the grader is closed")
            for worker in self._idle:
                if module in worker.loaded:
                    self._idle.remove(worker)
                    return worker
            return self._idle.pop() if self._idle else None


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
                # A thread of a numerical library takes address space, which is limited.
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "MPLBACKEND": "agg"},
            )
        self.alive = True
        self.loaded: set[str] = set()

    def ask(self, module: str, question: Question) -> Answered | Failed:
        """The answer; `TOOK_TOO_LONG`, and the worker is dead, if there was none in time."""
        try:
            self._pipe.send(question)
        except OSError:
            self.kill()
            return TOOK_TOO_LONG
        if module not in self.loaded:
            if self._receive(START_LIMIT) != READY:
                self.kill()
                raise RuntimeError(f"a worker for {module} did not start; is all of it installed?")
            self.loaded.add(module)
        answer = self._receive(TIME_LIMIT)
        match answer:
            case {"answer": value}:
                return Answered(value)
            case {"failed": str(reason)}:
                return Failed(reason)
        self.kill()
        return TOOK_TOO_LONG

    def kill(self) -> None:
        """End the process, whatever it does. Harmless when repeated."""
        self.alive = False
        self._process.kill()
        self._process.wait()
        self._pipe.close()

    def _receive(self, seconds: float) -> object:
        """What the worker sends within that time; None if nothing."""
        try:
            return json.loads(self._pipe.recv_bytes()) if self._pipe.poll(seconds) else None
        except (EOFError, OSError, ValueError):
            return None
