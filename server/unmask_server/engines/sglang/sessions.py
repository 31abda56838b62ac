"""Connections to SGLang servers: only to addresses that may be called."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import Any

import aiohttp

MayCall = Callable[[str], bool]
"""Whether a connection to an IP address may be opened."""


def open_session(may_call: MayCall | None, **connector: Any) -> aiohttp.ClientSession:
    """A session whose every connection is asked about, whatever a name means by then.

    Args:
        may_call: is asked with the address; None: all may be called.
        connector: arguments of `aiohttp.TCPConnector`.

    """

    def make(info: Any) -> socket.socket:
        family, kind, protocol, _, address = info
        if may_call is not None and not may_call(str(address[0])):
            what = f"{address[0]} is no address that this server may call (endpoint_hosts)"
            raise OSError(errno.EACCES, what)
        return socket.socket(family, kind, protocol)

    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(socket_factory=make, **connector))
