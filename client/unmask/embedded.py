"""A server of one's own: a child process behind a Unix socket.

One database has one embedded server. Its socket's name is derived from the database, so a second
program of the same user finds the server that is there and connects to it; that one ends with the
program that started it, and whoever still needs it starts the next.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

from unmask.client import Client

DEFAULT_DATABASE = Path(".unmask/unmask.db")
"""In the current folder; the same as the server's own default."""

_NEEDED = (
    "alembic",
    "grpc_health",
    "pydantic_settings",
    "sqlalchemy",
    "structlog",
    "unmask_server",
)
_POLL_SECONDS = 0.02
_STOP_SECONDS = 15.0
_LOG_LINES = 15


@dataclass(frozen=True, slots=True)
class LocalServer:
    """An embedded server that answers. A context manager: leaving it stops the server."""

    address: str
    """For `Client` and `AsyncClient`."""
    database: str
    """URL of its database."""
    log: Path
    """What the server says."""
    process: subprocess.Popen[bytes] | None
    """The child; None if the server was there and belongs to another program."""

    def close(self) -> None:
        """Stop the server if it was started here; growths go on when the next one starts."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def serve(
    path: str | Path | None = None,
    *,
    device: str | None = None,
    dtype: str | None = None,
    threads: int | None = None,
    max_batch: int | None = None,
    timeout: float = 120.0,
) -> LocalServer:
    """Start the embedded server of a database, or find the one that runs.

    The server is a child process that ends with this process at the latest. If one is running
    already, the options are its own, not these.

    Args:
        path: the SQLite file, made if missing, or a URL of a database. None: `.unmask/unmask.db`.
        device: where models run, e.g. `cpu` or `cuda`; None: the server's default.
        dtype: of the models, e.g. `float32` or `bfloat16`; None: the server's default.
        threads: CPU threads; None: all cores.
        max_batch: rollouts that run at once; None: the server's default.
        timeout: seconds to wait for it to answer.

    Raises:
        ImportError: the server is not installed.
        RuntimeError: it did not start; says what its log says.

    """
    database, log, where = _places(path)
    with _locked(where.with_suffix(".lock")):
        address = f"unix:{where}"
        if _answers(where):
            _wait_ready(address, timeout)
            return LocalServer(address, database, log, None)
        _require_server()
        options = {
            "--device": device,
            "--dtype": dtype,
            "--threads": threads,
            "--max-batch": max_batch,
        }
        command = [sys.executable, "-m", "unmask_server", "serve"]
        command += ["--listen", address, "--database", database, "--parent-pid", str(os.getpid())]
        # Only this user can open its socket, whatever the environment asks of other servers.
        command += ["--auth", "none"]
        # What a machine's file says is for its server, not for one of one's own.
        command += ["--config", os.environ.get("UNMASK_CONFIG", "")]
        for option, value in options.items():
            if value is not None:
                command += [option, str(value)]
        where.unlink(missing_ok=True)
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Ctrl-C at the terminal is for this process; the server ends after it.
                start_new_session=True,
            )
        server = LocalServer(address, database, log, process)
        try:
            _wait_until_up(server, where, timeout)
        except BaseException:
            server.close()
            raise
        return server


def local(
    path: str | Path | None = None,
    *,
    device: str | None = None,
    dtype: str | None = None,
    threads: int | None = None,
    max_batch: int | None = None,
    timeout: float | None = 600.0,
) -> Client:
    """A client of the embedded server of a database; closing it stops the server.

        with unmask.local() as client:
            ...

    For the arguments see `serve`; `timeout` is the client's.
    """
    server = serve(path, device=device, dtype=dtype, threads=threads, max_batch=max_batch)
    client = Client(server.address, timeout=timeout)
    client.on_close(server.close)
    return client


def _places(path: str | Path | None) -> tuple[str, Path, Path]:
    """The URL of the database, the server's log and its socket."""
    given = str(DEFAULT_DATABASE if path is None else path)
    runtime = _runtime_folder()
    sqlite = "sqlite:///"
    if "://" in given and not given.startswith(sqlite):
        url = given
        key = hashlib.sha256(url.encode()).hexdigest()[:20]
        return url, runtime / f"{key}.log", runtime / f"{key}.sock"
    file = Path(given.removeprefix(sqlite)).expanduser().resolve()
    file.parent.mkdir(parents=True, exist_ok=True)
    url = f"{sqlite}{file}"
    key = hashlib.sha256(url.encode()).hexdigest()[:20]
    return url, file.with_name(f"{file.name}.log"), runtime / f"{key}.sock"


def _runtime_folder() -> Path:
    """A folder for this user only; short, for paths of sockets have at most 107 bytes."""
    bases = (os.environ.get("XDG_RUNTIME_DIR", ""), tempfile.gettempdir(), "/tmp")
    base = next(base for base in bases if len(base) in range(1, 60) and os.path.isdir(base))
    folder = Path(base) / f"unmask-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if found.st_uid != os.getuid() or found.st_mode & 0o077 or folder.is_symlink():
        raise RuntimeError(f"{folder} is open to other users; remove it")
    return folder


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[IO[bytes]]:
    """Two programs that want the same server start one."""
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def _answers(where: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(where))
        except OSError:
            return False
        return True


def _wait_ready(address: str, timeout: float) -> None:
    with Client(address) as client:
        client.wait_ready(timeout)


def _wait_until_up(server: LocalServer, where: Path, timeout: float) -> None:
    assert server.process is not None
    deadline = time.monotonic() + timeout
    while not _answers(where):
        if server.process.poll() is not None:
            said = server.log.read_text(errors="replace").strip().splitlines()[-_LOG_LINES:]
            raise RuntimeError(
                f"the server did not start (exit status {server.process.returncode}); "
                + "\n  ".join([f"{server.log} ends with", *said])
            )
        if time.monotonic() > deadline:
            raise RuntimeError(f"no server after {timeout:g} s; see {server.log}")
        time.sleep(_POLL_SECONDS)
    _wait_ready(server.address, max(deadline - time.monotonic(), 1.0))


def _require_server() -> None:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"an embedded server needs {', '.join(missing)}: pip install 'unmask[transformers]', "
            "or give the address of a running server"
        )
