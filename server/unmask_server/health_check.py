"""Asks a server how it is, as health checks of containers and scripts do."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health_pb2

if TYPE_CHECKING:
    from unmask_server.config import Settings

SERVING = "SERVING"
_POLL_SECONDS = 0.2
_SOCKETS = ("unix:", "unix-abstract:")
_EVERYWHERE = ("", "*", "0.0.0.0", "::")


def own_address(settings: Settings) -> str:
    """Where the machine of a server with these settings asks it: at a Unix socket if there is one.

    Raises:
        ValueError: there are only addresses with TLS, whose names this machine need not know.

    """
    for address in (*settings.admin_listen, *settings.listen):
        if address.startswith(_SOCKETS):
            return address
    if settings.tls_cert and not settings.admin_listen:
        raise ValueError(
            "listen: a server with TLS is asked at a Unix socket; let it listen at unix:PATH, too, "
            "or say --address"
        )
    address = (*settings.admin_listen, *settings.listen)[0]
    host, _, port = address.rpartition(":")
    return f"localhost:{port}" if host.strip("[]") in _EVERYWHERE else address


def status(address: str, service: str = "", *, patience: float = 0.0, timeout: float = 3.0) -> str:
    """SERVING, or what is the matter.

    Args:
        address: HOST:PORT or unix:PATH.
        service: its full name; empty: the server as a whole.
        patience: seconds to go on asking one that does not serve.
        timeout: seconds that one answer may take.

    """
    until = time.monotonic() + patience
    with grpc.insecure_channel(address) as channel:
        ask = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        request = health_pb2.HealthCheckRequest(service=service)
        while True:
            try:
                answer = ask(request, timeout=timeout)
                found = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
            except grpc.RpcError as error:
                found = f"{error.code().name}: {error.details()}"
            if found == SERVING or time.monotonic() >= until:
                return found
            time.sleep(_POLL_SECONDS)
