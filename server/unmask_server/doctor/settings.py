"""The settings: what contradicts itself, what nobody reads, what is open to others."""

from __future__ import annotations

import os
import socket
import ssl
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unmask_server.access.listening import check_listening
from unmask_server.access.tls import Certificates
from unmask_server.config import Settings
from unmask_server.configuration.loading import Loaded, nearest, variable
from unmask_server.configuration.show import MASK, masked
from unmask_server.doctor.finding import Finding, ok, problem, warning

OTHERS = frozenset(
    f"UNMASK_{name}"
    for name in (
        "ADDRESS",
        "CONFIG",
        "TOKEN",
        "TOKEN_FILE",
        "TLS_CA",
        "CLIENT_CERT",
        "CLIENT_KEY",
        "DEVICE",
        "DTYPE",
        "THREADS",
    )
)
"""Variables that are no settings of a server: the client's."""
EXPIRY_DAYS = 21.0
CONNECT_SECONDS = 2.0


def sources(loaded: Loaded) -> Iterator[Finding]:
    """The file and the environment."""
    known = {variable(name) for name in Settings.model_fields} | OTHERS
    for name in sorted(os.environ):
        if name.startswith("UNMASK_") and name not in known and "CHAOS" not in name:
            yield warning(
                "environment",
                f"{name} is no setting, so nothing reads it",
                f"correct or remove it{nearest(name.removeprefix('UNMASK_'))}",
            )
    if loaded.file is None:
        yield ok("settings", "no file; `unmask-server config` shows them")
        return
    open_to = loaded.file.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH)
    secrets = [
        name
        for name, source in loaded.sources.items()
        if source.startswith("file ") and MASK in str(masked(getattr(loaded.settings, name)))
    ]
    if open_to and secrets:
        yield warning(
            "settings",
            f"{loaded.file} holds secrets ({', '.join(secrets)}) and others can read it",
            f"chmod 600 {loaded.file}",
        )
    else:
        yield ok("settings", str(loaded.file))


def listening(settings: Settings) -> Iterator[Finding]:
    """Who could connect, and whether the addresses are free."""
    try:
        tls = check_listening(settings)
    except ValueError as error:
        name, _, why = str(error).partition(": ")
        yield problem(name, why.partition(": ")[0], why.partition(": ")[2] or "correct the setting")
        tls = None
    for address in (*settings.listen, *settings.admin_listen, settings.metrics_listen):
        if address:
            yield _address(address)
    if tls is None:
        return
    try:
        Certificates(tls)
    except ValueError as error:
        yield problem("tls", str(error), "give this user the right files, in PEM")
        return
    for file in tls.all:
        if file != tls.key:
            yield _expiry(file)
    if tls.key.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
        yield warning("tls", f"others can read {tls.key}", f"chmod 600 {tls.key}")


def _expiry(file: Path) -> Finding:
    decode: Any = getattr(ssl, "_ssl")._test_decode_cert  # noqa: B009 - the only one of the library
    ends = ssl.cert_time_to_seconds(decode(str(file))["notAfter"])
    days = (ends - time.time()) / 86_400.0
    when = time.strftime("%Y-%m-%d", time.gmtime(ends))
    if days < 0:
        return problem("tls", f"{file} expired on {when}", "put a new one there; no restart needed")
    if days < EXPIRY_DAYS:
        return warning(
            "tls", f"{file} expires on {when}", "renew it in time; the server takes it as it comes"
        )
    return ok("tls", f"{file}, until {when}")


def _address(address: str) -> Finding:
    if address.startswith(("unix:", "unix-abstract:")):
        return _socket(address)
    host, _, port = address.rpartition(":")
    if not port.isdigit() or int(port) > 65_535:
        return problem("listen", f"{address} has no port", "write HOST:PORT, as localhost:50051")
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(
            host.strip("[]") or None, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        return problem(
            "listen", f"{address}: {error.strerror or error}", "use a name of this machine"
        )
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(where)
        except OSError as error:
            return _taken(address, error)
    return ok("listen", f"{address} is free")


def _taken(address: str, error: OSError) -> Finding:
    if (said := _health(address)) is not None:
        return ok("listen", f"an Unmask server is at {address} already, {said}")
    return problem(
        "listen",
        f"{address}: {error.strerror}",
        "stop what listens there (`ss -ltnp`), or listen at another address",
    )


def _socket(address: str) -> Finding:
    path = Path(address.partition(":")[2].removeprefix("//"))
    if address.startswith("unix-abstract:"):
        return ok("listen", address)
    if path.exists():
        if not stat.S_ISSOCK(path.stat().st_mode):
            return problem("listen", f"{path} is no socket", "remove it, or use another path")
        if (said := _health(address)) is not None:
            return ok("listen", f"an Unmask server is at {address} already, {said}")
        return ok("listen", f"{address}: left by a server that is gone; it will be replaced")
    if not os.access(path.parent, os.W_OK):
        return problem(
            "listen", f"{path.parent} cannot be written", "make it, or let this user write there"
        )
    return ok("listen", f"{address} is free")


def _health(address: str) -> str | None:
    """What an Unmask server at an address says; None if none answers."""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    request = health_pb2.HealthCheckRequest(service="unmask.v1.CatalogService")
    try:
        with grpc.insecure_channel(address) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            found = stub.Check(request, timeout=CONNECT_SECONDS)
    except grpc.RpcError:
        return None
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(found.status))
