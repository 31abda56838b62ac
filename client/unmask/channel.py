"""How to reach a server: addresses, credentials, retries, limits."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc

from unmask.errors import UnavailableError

DEFAULT_ADDRESS = "localhost:50051"
"""Where a server listens unless told otherwise."""

MAX_MESSAGE_BYTES = 64 * 2**20
"""The largest message that is sent or taken; servers have a limit of their own."""

HEALTH_PATH = "/grpc.health.v1.Health/Check"
"""The standard health service; its request may be empty, and its answer is `SERVING`."""

SERVING = b"\x08\x01"
"""HealthCheckResponse(status=SERVING), serialised."""

Tls = bool | grpc.ChannelCredentials | None
Token = str | Callable[[], str] | None
File = str | os.PathLike[str] | None
"""For these three see `unmask.Client`."""

# Every call of the contract may be repeated without harm: registering returns what is there,
# sampling and growing are keyed by seed and request_id, all others only read. UNAVAILABLE is the
# only code that says "the same call may work in a moment".
TRIES = 5
"""As many as gRPC allows."""
FIRST_PAUSE, MOST_PAUSE, GROWTH = 0.1, 2.0, 3.0
"""Between them: the first one and the longest, in seconds, and by how much they grow."""
_SERVICE_CONFIG = json.dumps(
    {
        "methodConfig": [
            {
                "name": [{}],
                "retryPolicy": {
                    "maxAttempts": TRIES,
                    "initialBackoff": f"{FIRST_PAUSE:g}s",
                    "maxBackoff": f"{MOST_PAUSE:g}s",
                    "backoffMultiplier": GROWTH,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ]
    }
)

# Servers that were not told otherwise close connections that are pinged more than once in five
# minutes.
_KEEPALIVE_MS = 330_000
_KEEPALIVE_TIMEOUT_MS = 20_000


@dataclass(frozen=True, slots=True)
class Connection:
    """Where to, and how."""

    target: str
    """As gRPC wants it."""
    credentials: grpc.ChannelCredentials | None
    """None: in the clear."""
    token: Callable[[], str] | None
    """Asked for each call."""

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What goes with a call."""
        return (("authorization", f"Bearer {self.token()}"),) if self.token else ()

    @property
    def options(self) -> list[tuple[str, Any]]:
        """Channel options."""
        return [
            ("grpc.enable_retries", 1),
            ("grpc.service_config", _SERVICE_CONFIG),
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
            ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
            ("grpc.initial_reconnect_backoff_ms", 200),
            ("grpc.max_reconnect_backoff_ms", 5_000),
        ]


def connection(
    address: str,
    *,
    token: Token = None,
    tls: Tls = None,
    ca: File = None,
    cert: File = None,
    key: File = None,
) -> Connection:
    """How to reach `address`; see `unmask.Client` for the arguments.

    Raises:
        ValueError: an empty address, arguments that do not go together, or a token that would cross
            a network in the clear.
        OSError: a file cannot be read.

    """
    target = address.strip()
    if not target:
        raise ValueError("address: empty; e.g. localhost:50051 or unix:/run/unmask.sock")
    if tls is None and not target.startswith(_SOCKETS):
        ca = ca or os.environ.get("UNMASK_TLS_CA")
        cert = cert or os.environ.get("UNMASK_CLIENT_CERT")
        key = key or os.environ.get("UNMASK_CLIENT_KEY")
    found = _credentials(tls, ca, cert, key)
    source = _token(token)
    if source and found is None and tls is None and not _stays_here(target):
        raise ValueError(
            f"token: would be sent to {target} in the clear; give tls=True (or tls=False if the "
            "network is trusted)"
        )
    return Connection(target, found, source)


def _token(token: Token) -> Callable[[], str] | None:
    """What gives the token of a call."""
    if token is None:
        path = os.environ.get("UNMASK_TOKEN_FILE")
        token = os.environ.get("UNMASK_TOKEN") or (
            functools.partial(read_token, path) if path else None
        )
    if not token:
        return None
    if callable(token):
        return token
    text = token
    return lambda: text


def read_token(path: str | os.PathLike[str]) -> str:
    """The token in a file. Read for each call: whoever renews it writes it there."""
    with open(path, encoding="utf-8") as file:
        return file.read().strip()


def _credentials(tls: Tls, ca: File, cert: File, key: File) -> grpc.ChannelCredentials | None:
    if isinstance(tls, grpc.ChannelCredentials) or tls is False:
        if ca or cert or key:
            raise ValueError("tls: goes with neither ca nor cert nor key; give one or the others")
        return tls or None
    if bool(cert) is not bool(key):
        raise ValueError("cert: goes with key; give both")
    if not (tls or ca or cert):
        return None
    return grpc.ssl_channel_credentials(*(_content(file) for file in (ca, key, cert)))


def _content(file: File) -> bytes | None:
    if not file:
        return None
    with open(file, "rb") as opened:
        return opened.read()


_SOCKETS = ("unix:", "unix-abstract:")


def _stays_here(target: str) -> bool:
    host = target.rpartition(":")[0].strip("[]")
    return target.startswith(_SOCKETS) or host in (
        "localhost",
        "127.0.0.1",
        "::1",
    )


def require_serving(answer: bytes, address: str) -> None:
    """Refuse any answer of the health service but SERVING.

    Raises:
        UnavailableError: the server is there, but does not serve.

    """
    if answer != SERVING:
        raise UnavailableError(
            grpc.StatusCode.UNAVAILABLE, f"the server at {address} is there, but does not serve"
        )
