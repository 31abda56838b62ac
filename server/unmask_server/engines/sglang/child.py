"""A process that dies with us, with all its descendants, and whose output is read by the line."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import os
import re
import signal
import sys
from collections import deque
from collections.abc import Callable, Sequence

from unmask_server.engines.sglang import supervisor

TAIL_LINES = 30
"""Of its output are kept, to tell why it died."""
MAX_LINE = 4096
"""Characters of a line; the rest is dropped."""
LAST_OUTPUT_SECONDS = 2.0
"""How long output is waited for after the end, should a process that got away hold the pipe."""
_ENDS_OF_LINES = re.compile(r"[\r\n]+")


class Child:
    """A running command and its descendants.

    They end with this process, also when this process is killed; see `supervisor`.
    """

    def __init__(
        self, process: asyncio.subprocess.Process, output: int, on_line: Callable[[str], None]
    ) -> None:
        self._process = process
        self._on_line = on_line
        self._ended = asyncio.create_task(self._follow(output))
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        """The last lines of its output."""

    @classmethod
    async def start(
        cls, command: Sequence[str], *, grace: float, on_line: Callable[[str], None]
    ) -> Child:
        """Start a command.

        Args:
            command: program and arguments. If there is no such program, that is its last line.
            grace: seconds between SIGTERM and SIGKILL when it is stopped.
            on_line: called with every line of its output, without its end.

        """
        read, write = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", supervisor.__file__, str(os.getpid()), str(grace)),
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=write,
                stderr=write,
                start_new_session=True,
            )
        except BaseException:
            os.close(read)
            raise
        finally:
            os.close(write)
        return cls(process, read, on_line)

    @property
    def pid(self) -> int:
        """Of the supervisor, which is the parent of the command."""
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether it and its descendants are gone."""
        return self._ended.done()

    async def wait(self) -> str:
        """Wait for its end. Returns how it ended: `exited with status 1`, `killed by SIGKILL`."""
        return await asyncio.shield(self._ended)

    async def stop(self) -> None:
        """End it, gently at first. Returns when it and its descendants are gone."""
        stdin = self._process.stdin
        assert stdin is not None
        with contextlib.suppress(ConnectionError):
            stdin.write(b"stop")
            await stdin.drain()
        await self.wait()

    async def kill(self) -> None:
        """End it at once. Returns when it and its descendants are gone."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self.wait()

    async def _follow(self, output: int) -> str:
        """Read to the end. Returns how it ended."""
        reading = asyncio.create_task(self._read(output))
        status = await self._process.wait()
        if status < 0:
            # The supervisor itself was killed: nobody else ends what it leaves.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(reading, LAST_OUTPUT_SECONDS)
        return _describe(status)

    async def _read(self, output: int) -> None:
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(output, "rb")
        )
        decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
        rest = ""
        try:
            while data := await reader.read(65536):
                *lines, rest = _ENDS_OF_LINES.split(rest + decode(data))
                rest = rest[:MAX_LINE]
                for line in lines:
                    self._take(line)
            self._take(rest)
        finally:
            transport.close()

    def _take(self, line: str) -> None:
        line = line.rstrip()[:MAX_LINE]
        if line:
            self.tail.append(line)
            self._on_line(line)


def _describe(status: int) -> str:
    number = -status if status < 0 else status - 128
    try:
        return f"killed by {signal.Signals(number).name}"
    except ValueError:
        return f"exited with status {status}"
