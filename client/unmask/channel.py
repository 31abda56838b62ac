"""How to reach a server: addresses, credentials, retries, limits."""

from __future__ import annotations

import os
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

Tls = bool | str | os.PathLike[str] | grpc.ChannelCredentials | None
"""See `unmask.Client`."""

# Every call of the contract may be repeated without harm: registering returns what is there,
# sampling and growing are keyed by seed and request_id, all others only read. UNAVAILABLE is the
# only code that says "the same call may work in a moment". gRPC allows five tries at most.
_SERVICE_CONFIG = """{
  "methodConfig": [{
    "name": [{}],
    "retryPolicy": {
      "maxAttempts": 5,
      "initialBackoff": "0.1s",
      "maxBackoff": "2s",
      "backoffMultiplier": 3,
      "retryableStatusCodes": ["UNAVAILABLE"]
    }
  }]
}"""

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
    metadata: tuple[tuple[str, str], ...]
    """Goes with every call."""

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


def connection(address: str, token: str | None, tls: Tls) -> Connection:
    """How to reach `address`; see `unmask.Client` for the arguments.

    Raises:
        ValueError: an empty address, or a token that would cross a network in the clear.
        OSError: the file of certificates cannot be read.

    """
    target = address.strip()
    if not target:
        raise ValueError("address: empty; e.g. localhost:50051 or unix:/run/unmask.sock")
    if token and tls is None and not _stays_here(target):
        raise ValueError(
            f"token: would be sent to {target} in the clear; give tls=True (or tls=False if the "
            "network is trusted)"
        )
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    return Connection(target, _credentials(tls), metadata)


def _credentials(
    tls: Tls,
) -> grpc.ChannelCredentials | None:
    if tls is None or tls is False:
        return None
    if tls is True:
        return grpc.ssl_channel_credentials()
    if isinstance(tls, str | os.PathLike):
        with open(tls, "rb") as file:
            return grpc.ssl_channel_credentials(root_certificates=file.read())
    return tls


def _stays_here(target: str) -> bool:
    host = target.rpartition(":")[0].strip("[]")
    return target.startswith(("unix:", "unix-abstract:")) or host in (
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
