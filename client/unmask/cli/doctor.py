"""`unmask doctor`: whether a server can be used from here, and what to do if not."""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import grpc
import typer
from rich.console import Console
from rich.markup import escape

import unmask
from unmask.channel import HEALTH_PATH, SERVING
from unmask.cli.connect import connected, stdout
from unmask.client import Client
from unmask.errors import UnauthenticatedError, UnmaskError, from_rpc_error

VERSION_METADATA = "unmask-version"
"""Trailing metadata of an Unmask server's health checks."""
PARTS = {
    "store": "its database is away, or at another revision: `unmask-server doctor` there tells",
    "engine": "no model can be run there: growing waits, what is stored is answered",
}
CALLS = 11
SECONDS = 10.0
SLOW_MS = 200.0

_MARKS = {"ok": "[green]✓[/green]", "warning": "[yellow]![/yellow]", "problem": "[red]✗[/red]"}


@dataclass(frozen=True, slots=True)
class _Finding:
    level: str
    subject: str
    found: str
    todo: str = ""


class _Unreachable(Exception):  # noqa: N818 - ends the checks, no more
    """There is no point in going on."""


class _Checks:
    """Looks at a server by its client; each check adds what it finds."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.found: list[_Finding] = []

    def run(self) -> None:
        try:
            self._server()
            for part, todo in PARTS.items():
                self._part(part, todo)
            self._latency()
            self._access()
        except _Unreachable:
            return

    def _server(self) -> None:
        try:
            _, call = self._health("")
        except grpc.RpcError as error:
            self._refused(error)
        version = dict(call.trailing_metadata() or ()).get(VERSION_METADATA, "")
        mine = unmask.__version__
        if not version:
            self._add("warning", "version", f"{mine} here; the server does not tell its own",
                      "if something is missing there, have the server upgraded")  # fmt: skip
        elif version.split(".")[:2] != mine.split(".")[:2]:
            self._add("warning", "version", f"{mine} here, {version} at the server",
                      "use the same on both sides")  # fmt: skip
        else:
            self._add("ok", "version", f"{mine} here, {version} at the server")

    def _refused(self, error: grpc.RpcError) -> None:
        found = from_rpc_error(error)
        address = self._client.address
        todo = (
            "is it running there, and can this machine reach it? Is TLS on one side only (--tls)?"
        )
        if found.code() is grpc.StatusCode.UNIMPLEMENTED:
            todo = "another service is at this address; give that of an Unmask server"
        self._add("problem", "server", f"{address}: {found.message}", todo)
        raise _Unreachable

    def _part(self, part: str, todo: str) -> None:
        try:
            answer, _ = self._health(part)
        except grpc.RpcError:
            return
        if answer == SERVING:
            self._add("ok", part, "ready")
        else:
            self._add("problem" if part == "store" else "warning", part, "not ready", todo)

    def _latency(self) -> None:
        took = []
        for _ in range(CALLS):
            begun = time.perf_counter()
            self._health("")
            took.append(1000.0 * (time.perf_counter() - begun))
        middle = statistics.median(took)
        found = f"{middle:.1f} ms a call, {min(took):.1f} to {max(took):.1f}"
        if middle > SLOW_MS:
            self._add("warning", "latency", found, "ask for much at once: streams, summaries")
        else:
            self._add("ok", "latency", found)

    def _access(self) -> None:
        try:
            counted = self._client.with_timeout(SECONDS).statistics()
        except UnauthenticatedError as error:
            self._add("problem", "access", error.message,
                      "give a token (--token, UNMASK_TOKEN); its operator makes them")  # fmt: skip
        except UnmaskError as error:
            self._add(
                "problem", "access", f"{error.code().name}: {error.message}", "see docs/errors.md"
            )
        else:
            self._add("ok", "access", f"may read; {counted.rollouts} rollouts are there")

    def _health(self, service: str) -> tuple[bytes, Any]:
        name = service.encode()
        request = b"\x0a" + bytes([len(name)]) + name if name else b""  # field 1, a string
        check: Any = self._client.channel.unary_unary(HEALTH_PATH)
        answer, call = check.with_call(request, timeout=SECONDS, metadata=self._client._metadata())
        return answer, call

    def _add(self, level: str, subject: str, found: str, todo: str = "") -> None:
        self.found.append(_Finding(level, subject, found, todo))


def _doctor(
    client: Client,
    as_json: Annotated[bool, typer.Option("--json", help="As a list of objects.")] = False,
) -> None:
    """Check a server from here: reachable, ready, its version, how fast, and what you may.

    Exits with 1 if there is a problem. Of a set-up as such `unmask-server doctor` tells more.
    """
    checks = _Checks(client)
    checks.run()
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in checks.found], indent=2))
    else:
        console = stdout()
        for finding in checks.found:
            _show(finding, console)
    raise typer.Exit(int(any(finding.level == "problem" for finding in checks.found)))


def _show(finding: _Finding, console: Console) -> None:
    subject, found = f"{finding.subject:<13}", escape(finding.found)
    console.print(f"{_MARKS[finding.level]} [bold]{subject}[/bold] {found}", soft_wrap=True)
    if finding.todo:
        console.print(f"{'':16}→ {escape(finding.todo)}", soft_wrap=True)


doctor = connected(_doctor)
