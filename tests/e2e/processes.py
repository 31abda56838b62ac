"""Servers in processes of their own, to be killed."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import grpc

from tests.e2e.conftest import Stubs


@asynccontextmanager
async def server_process(
    url: str,
    socket: Path,
    python: str = sys.executable,
    cwd: Path | None = None,
    flags: Sequence[str] = (),
) -> AsyncIterator[tuple[Stubs, subprocess.Popen[bytes]]]:
    """`unmask-server serve` over a database; killed at the end of the block."""
    command = [python, "-m", "unmask_server", "serve"]
    process = subprocess.Popen(  # noqa: ASYNC220 - starting it takes no time
        [*command, "--database", url, "--listen", f"unix:{socket}", *flags], cwd=cwd
    )
    try:
        async with grpc.aio.insecure_channel(f"unix:{socket}") as channel:
            await asyncio.wait_for(channel.channel_ready(), 120)
            yield Stubs(channel), process
    finally:
        process.kill()
        process.wait()
