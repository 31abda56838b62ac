"""Metrics over HTTP, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import start_http_server

from unmask_server.telemetry.metrics import REGISTRY


@contextmanager
def exposed(address: str) -> Iterator[str]:
    """Serve the metrics at `HOST:PORT`, on any path, from a thread; yields the address it got.

    Raises:
        ValueError: it is no such address, or cannot be had.

    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdecimal():
        raise ValueError(f"metrics_listen: {address!r} is not HOST:PORT")
    try:
        server, thread = start_http_server(int(port), host, REGISTRY)
    except (OSError, OverflowError) as error:
        raise ValueError(f"metrics_listen: cannot listen at {address}: {error}") from None
    try:
        shown = f"[{host}]" if ":" in host else host
        yield f"{shown}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
