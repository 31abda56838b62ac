"""Who calls: one answer for quotas, limits, logs and metrics."""

from __future__ import annotations

import ipaddress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

import grpc

from unmask_server.catalog.errors import InvalidArgument

CLIENT_METADATA = "unmask-client"
"""Metadata by which a client names itself. Nobody proves such a name."""
MAX_NAME = 200

authenticated: ContextVar[str] = ContextVar("unmask_authenticated", default="")
"""The principal of the call that is being handled: set by the interceptor that authenticates, in
the call's own task. Empty: nobody was authenticated."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose call it is."""

    principal: str
    """Who was authenticated; empty: nobody."""
    name: str
    """What the client calls itself; empty: nothing."""
    address: str
    """Where the call comes from: an IP address, an IPv6 network of 64 bits, or `unix`."""

    @property
    def account(self) -> str:
        """Whose quota pays: the principal's, else that of the name; without either, a shared one.

        Raises:
            InvalidArgument: the name is too long.

        """
        if not self.principal and len(self.name) > MAX_NAME:
            raise InvalidArgument(
                f"metadata {CLIENT_METADATA}", f"longer than {MAX_NAME} characters"
            )
        return self.principal or self.name

    @property
    def limited(self) -> str:
        """Who is held to the limits of one client. A name that nobody proves buys no more room."""
        return f"principal {self.principal}" if self.principal else f"address {self.address}"


def client_of(context: grpc.aio.ServicerContext[Any, Any]) -> Caller:
    """Whose call this is; to be asked in the call's own task."""
    name = ""
    for key, value in context.invocation_metadata() or ():
        if key == CLIENT_METADATA:
            name = value if isinstance(value, str) else value.decode(errors="replace")
    principal = authenticated.get() or certified(context)
    return Caller(principal, name, address_of(context.peer()))


def certified(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    """Who the client is by its certificate, where the server asks for one (mTLS); else empty."""
    names = context.auth_context().get("x509_common_name", ())
    return f"cert:{b' '.join(names).decode(errors='replace')[:MAX_NAME]}" if names else ""


@lru_cache(4096)
def address_of(peer: str) -> str:
    """The address in gRPC's name of a peer (`ipv4:1.2.3.4:567`), without its port."""
    kind, _, rest = unquote(peer).partition(":")
    if kind not in ("ipv4", "ipv6"):
        return kind
    host = rest.rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:
            return str(address.ipv4_mapped)
        # One machine may have all of a /64 for itself.
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)
