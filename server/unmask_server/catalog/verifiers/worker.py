"""What runs in a worker process: one question after the other, within its limits.

A library's own time limit is an alarm signal with a Python handler, and some inputs
(`9^{9^{9^9}}`) hold the interpreter lock for ever, so no handler ever runs. Here the signal keeps
its default action, by which the kernel ends the process, whatever the interpreter does: should the
server be gone and kill it no more, it ends all the same.

Some scorers evaluate a generation as Python, and some generators read a file that their settings
name. While a question is answered, what starts processes, opens connections, changes files or reads
any but the libraries' own is refused. That keeps accidents from doing harm, and requests from
reading the machine's files; it is no sandbox against Python that means harm.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import sysconfig
from contextlib import suppress
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any

Question = tuple[str, str, tuple[Any, ...]]
"""(module of this package, function, its arguments)."""

MAX_MEMORY = 4 * 2**30
"""Bytes of address space of a worker: a large power must not take the machine's memory."""

_REFUSED = (
    "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.kill",
    "os.putenv", "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink",
    "os.chmod", "os.chown", "os.truncate", "shutil.", "subprocess.", "socket.", "ctypes.", "pty.",
    "signal.pthread_kill", "urllib.", "ftplib.", "smtplib.", "webbrowser.",
)  # fmt: skip
"""Audit events, or how they begin, that no scoring needs."""


READY = {"ready": True}
"""Sent when a module is loaded; then comes `{"answer": ...}` or `{"failed": reason}`, all as JSON:
what was near to a generation's code is not unpickled."""


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
    guard = Guard()
    sys.addaudithook(guard)
    loaded: dict[str, Any] = {}
    while True:
        try:
            name, call, args = pipe.recv()
        except EOFError:
            return
        if name not in loaded:
            module = import_module(f"{__package__}.{name}")
            module.load()
            loaded[name] = module
            _send(pipe, READY)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        guard.on = True
        try:
            answer = {"answer": getattr(loaded[name], call)(*args)}
        except Exception as error:
            answer = {"failed": f"{type(error).__name__}: {error}"[:500]}
        guard.on = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        _send(pipe, answer)


def _send(pipe: Connection, message: dict[str, Any]) -> None:
    pipe.send_bytes(json.dumps(message).encode())


class Guard:
    """An audit hook that, while it is on, refuses what reaches anything outside the process."""

    def __init__(self) -> None:
        self.on = False
        installed = sysconfig.get_paths()
        places = [installed[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
        # Distributions have libraries in further places; what else is on the path may be anything.
        places += [p for p in sys.path if os.path.basename(p) in ("site-packages", "dist-packages")]
        self._readable = tuple(os.path.join(os.path.realpath(place), "") for place in places)

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        """See `sys.addaudithook`."""
        if not self.on:
            return
        if event == "open":
            path, mode, flags = (*args, None, 0)[:3]
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            refused = bool(writes) or any(letter in str(mode or "") for letter in "wax+")
            refused = refused or not self._may_read(path)
        else:
            refused = event.startswith(_REFUSED)
        if refused:
            raise PermissionError(f"{event} is not for scorers")

    def _may_read(self, path: object) -> bool:
        """Whether a file belongs to a library; what is open already may be opened once more."""
        if isinstance(path, int):
            return True
        if not isinstance(path, str | bytes | os.PathLike):
            return False
        place = os.path.realpath(os.fsdecode(path))
        return place == os.devnull or place.startswith(self._readable)
