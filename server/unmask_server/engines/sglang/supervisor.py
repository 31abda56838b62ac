"""Runs a command, and ends it with all its descendants when whoever started this is gone.

A program of its own, for the standard library alone: `python supervisor.py PARENT GRACE COMMAND…`.
PARENT is the process that started it, GRACE the seconds that the command gets to end by itself.

- Anything on standard input, SIGTERM or SIGHUP: the command gets SIGTERM, and after GRACE seconds
  it and its descendants are killed.
- Standard input closed, or another parent than PARENT: they are killed at once. A parent that is
  killed with SIGKILL closes its pipes, too, so that nothing of what it started is left.
- The command ends: what it left behind is killed, and this ends with the command's status (128 and
  the signal's number if a signal ended it).

On Linux this is the reaper of all descendants, those in sessions of their own included; elsewhere
it reaches those in its process group.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
LOOK_SECONDS = 1.0
"""How often the parent is looked for, should its end of the pipe be held by somebody else."""
KILL_SECONDS = 30.0
"""After that, processes that do not even die when killed (in a driver, say) are given up."""
LINUX = sys.platform == "linux"


def main(arguments: Sequence[str]) -> int:
    """Run the command until it ends or has to. Returns its exit status."""
    parent, grace, command = int(arguments[0]), float(arguments[1]), list(arguments[2:])
    wake = _wake_on(signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    child = _start(command)
    status = _watch(child, parent, grace, wake)
    _kill_all()
    return 128 + signal.SIGKILL if status is None else status


def _watch(child: int, parent: int, grace: float, wake: int) -> int | None:
    """The child's exit status; None if it has to be killed."""
    deadline = None
    while True:
        readable, _, _ = select.select([0, wake], [], [], LOOK_SECONDS)
        received = os.read(wake, 4096) if wake in readable else b""
        told = 0 in readable
        status = _reap(child)
        if status is not None:
            return status
        if (told and not os.read(0, 4096)) or os.getppid() != parent:
            return None
        if deadline is None and (told or signal.SIGTERM in received or signal.SIGHUP in received):
            deadline = time.monotonic() + grace
            os.kill(child, signal.SIGTERM)
        if deadline is not None and time.monotonic() >= deadline:
            return None


def _wake_on(*signals: signal.Signals) -> int:
    """A file that becomes readable when one of them arrives; it holds their numbers."""
    read, write = os.pipe()
    os.set_blocking(read, False)
    os.set_blocking(write, False)
    for number in signals:
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(write)
    return read


def _start(command: list[str]) -> int:
    supervisor = os.getpid()
    child = os.fork()
    if child == 0:
        _become(command, supervisor)
    return child


def _become(command: list[str], supervisor: int) -> NoReturn:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Should this supervisor be killed itself, the command follows.
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        if os.getppid() == supervisor:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.execvp(command[0], command)
    except OSError as error:
        os.write(2, f"{command[0]}: {error.strerror}\n".encode())
    os._exit(127)


def _reap(child: int) -> int | None:
    """Bury whoever has died. Returns the child's exit status if it was among them."""
    found = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            found = 128 - code if code < 0 else code


def _kill_all() -> None:
    """Kill every descendant, those that are being born meanwhile too."""
    deadline = time.monotonic() + KILL_SECONDS
    while time.monotonic() < deadline:
        living = _descendants()
        for pid in living:
            _kill(pid)
        _reap(0)
        if not living:
            break
        time.sleep(0.01)
    if not LINUX:
        os.killpg(0, signal.SIGKILL)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _descendants() -> list[int]:
    """All processes under this one; none where there is no /proc."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # pid (name) state parent …, where the name may hold anything.
            parent = int(stat.read_text(errors="replace").rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))
    found = list(children.get(os.getpid(), ()))
    for pid in found:
        found.extend(children.get(pid, ()))
    return found


def _prctl(option: int, value: int) -> None:
    if LINUX:
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
