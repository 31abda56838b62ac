"""How a server's connections behave: gRPC's options, out of the settings."""

from __future__ import annotations

from typing import Any

from unmask_server.config import Settings

_NEVER_MS = 2**31 - 1
_STRIKES = 2
"""Pings that come too soon and are forgiven; a frame of data clears them."""


def options(settings: Settings) -> list[tuple[str, Any]]:
    """What `grpc.aio.server` takes."""
    message = settings.max_message_mib * 2**20
    return [
        ("grpc.max_receive_message_length", message),
        ("grpc.max_send_message_length", message),
        ("grpc.so_reuseport", 0),
        # Who is gone without a word is noticed: its calls end, its streams no longer count.
        ("grpc.keepalive_time_ms", _ms(settings.keepalive_seconds)),
        ("grpc.keepalive_timeout_ms", _ms(settings.keepalive_timeout_seconds)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        (
            "grpc.http2.min_ping_interval_without_data_ms",
            round(1000.0 * settings.keepalive_min_ping_seconds),
        ),
        ("grpc.http2.max_ping_strikes", _STRIKES),
        ("grpc.max_connection_idle_ms", _ms(settings.max_connection_idle_seconds)),
        ("grpc.max_connection_age_ms", _ms(settings.max_connection_age_seconds)),
        ("grpc.max_connection_age_grace_ms", _ms(settings.max_connection_age_grace_seconds)),
        ("grpc.max_concurrent_streams", settings.max_concurrent_streams),
        ("grpc.enable_channelz", int(bool(settings.admin_listen))),
    ]


def _ms(seconds: float) -> int:
    """In milliseconds; 0: as good as never."""
    return min(round(1000.0 * seconds), _NEVER_MS) if seconds else _NEVER_MS
