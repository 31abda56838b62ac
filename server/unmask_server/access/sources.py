"""Which directories and hosts a request may name: those that the operator listed.

A path or address in a request makes the *server* read or call, with what the server may read and
reach: files of others, services behind the firewall, the metadata of a cloud's machine. So requests
are held to `model_roots` and `endpoint_hosts`; where the server is its user's own (nobody else can
connect, nobody logs in) these are open unless they are set, because that user can read the same
files and call the same hosts anyway.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from unmask_server.access.errors import SourceNotAllowed

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MayCall = Callable[[str], bool]
"""Whether a connection to an IP address may be opened."""

_METADATA = tuple(
    map(ipaddress.ip_address, ("100.100.100.200", "192.0.0.192", "fd00:ec2::254", "fd20:ce::254"))
)
"""Where clouds tell machines their secrets, beside the link-local addresses."""
_TRANSLATED = tuple(map(ipaddress.IPv6Network, ("64:ff9b::/96", "64:ff9b:1::/48", "::/96")))
"""Networks whose last 32 bits are an IPv4 address that a router (NAT64) or this machine calls."""


class SourceError(ValueError):
    """A setting is wrong."""


class Sources:
    """What requests may name."""

    def __init__(
        self, roots: Sequence[str] | None = None, hosts: Sequence[str] | None = None
    ) -> None:
        """Allow what is below some directories and at some hosts; None: any.

        Raises:
            ValueError: a root is no directory, or a host cannot be read.

        """
        self._roots = None if roots is None else tuple(map(_root, roots))
        self._hosts = None if hosts is None else tuple(map(_Rule.parse, hosts))
        self._launched: set[str] = set()

    def trust(self, url: str) -> None:
        """Allow the address of a server that this one started itself."""
        self._launched.add(url.rstrip("/"))

    def folder(self, path: str, field: str) -> Path:
        """The directory of a request, with links followed; it need not exist.

        Raises:
            SourceNotAllowed: it is outside the roots, by its name or through a link; whether there
                is anything is not told.

        """
        found: Path | None = None
        try:
            found = Path(path).expanduser().resolve()
        except (OSError, ValueError, RuntimeError):
            # Too long, a NUL in it, a loop of links, or nobody's home: nothing that is there.
            if self._roots is None:
                return Path("/nowhere")
        if found is None or not self._is_inside(found):
            raise SourceNotAllowed(
                field,
                f"{path[:200]} is not below a directory that this server may read models from "
                "(its setting model_roots)",
                "model_roots",
            )
        return found

    def check_files(self, folder: Path, field: str) -> None:
        """Refuse a model directory with files that are elsewhere, or no files.

        Links are common (a Hugging Face cache is made of them); they must lead to places below the
        roots, too. Devices and pipes would hold up whoever reads them.

        Raises:
            SourceNotAllowed: a file is a link out of the roots, or no ordinary file.

        """
        for entry in folder.iterdir():
            place = entry.resolve()
            if entry.is_symlink() and not self._is_inside(place):
                raise SourceNotAllowed(
                    field,
                    f"{entry.name} in it is a link to outside of where this server may read models "
                    "from (its setting model_roots)",
                    "model_roots",
                )
            if place.exists() and not place.is_file() and not place.is_dir():
                raise SourceNotAllowed(field, f"{entry.name} in it is no ordinary file", "")

    def endpoint(self, url: str, field: str) -> None:
        """Refuse the address of a server that may not be called.

        Names are looked up; a name that means nothing now is left to fail when it is called.

        Raises:
            SourceNotAllowed: so it is.

        """
        if url.rstrip("/") in self._launched:
            return
        parts = urlsplit(url)
        host = parts.hostname or ""
        found = _look_up(host)
        allowed = all(self._may_call(parts, address) for address in found)
        if not allowed or (not found and not self._names(parts)):
            raise SourceNotAllowed(
                field,
                f"{parts.netloc[:200]} is no host that this server may call (its setting "
                "endpoint_hosts; link-local and metadata addresses never are)",
                "endpoint_hosts",
            )

    def may_call(self, urls: Sequence[str]) -> MayCall | None:
        """What to ask before a connection to one of the servers is opened; None: nothing.

        An address is checked when it is used, so a name that meant another machine when it was
        registered leads nowhere else.
        """
        if all(url.rstrip("/") in self._launched for url in urls):
            return None
        parts = [urlsplit(url) for url in urls]

        def check(address: str) -> bool:
            found = ipaddress.ip_address(address.partition("%")[0])
            return any(self._may_call(one, found) for one in parts)

        return check

    def _is_inside(self, path: Path) -> bool:
        return self._roots is None or any(path.is_relative_to(root) for root in self._roots)

    def _names(self, parts: SplitResult) -> bool:
        return self._hosts is None or any(rule.names(parts) for rule in self._hosts)

    def _may_call(self, parts: SplitResult, address: Address) -> bool:
        plain = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
        address = plain or address
        meant = (address, *_within(address))
        if any(map(_is_never_called, meant)):
            return False
        if self._hosts is None:
            return True
        if any(rule.holds(address) for rule in self._hosts):
            return True
        if any(one.is_loopback for one in meant):
            # This very machine must be listed as such: another name's owner may point it here.
            return _is_loopback_name(parts.hostname or "") and any(
                rule.names(parts) for rule in self._hosts if rule.host != "*"
            )
        return self._names(parts)


ANYWHERE = Sources()
"""Any directory, and any host but the link-local ones."""


@dataclass(frozen=True, slots=True)
class _Rule:
    """One entry of `endpoint_hosts`."""

    host: str = ""
    """A name or address; with `*.` before it, all below it; `*`: any but this machine."""
    port: int | None = None
    network: Network | None = None

    @classmethod
    def parse(cls, text: str) -> _Rule:
        if "/" in text:
            try:
                return cls(network=ipaddress.ip_network(text, strict=False))
            except ValueError as error:
                raise SourceError(f"endpoint_hosts: {error}") from None
        try:
            parts = urlsplit(f"//{text}")
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise SourceError(f"endpoint_hosts: {text!r}: {error}") from None
        if not host or parts.username is not None or parts.path or parts.query:
            raise SourceError(
                f"endpoint_hosts: {text!r} is no HOST, HOST:PORT, *.DOMAIN, network or *"
            )
        return cls(host=host.rstrip("."), port=port)

    def names(self, parts: SplitResult) -> bool:
        """Whether it lists the host of an address by its name."""
        if self.network is not None:
            return False
        host = (parts.hostname or "").rstrip(".")
        port = parts.port or (443 if parts.scheme == "https" else 80)
        if self.port not in (None, port):
            return False
        if self.host.startswith("*."):
            return host.endswith(self.host[1:])
        return self.host in ("*", host)

    def holds(self, address: Address) -> bool:
        """Whether it is a network with an address in it."""
        return self.network is not None and address in self.network


def _root(path: str) -> Path:
    found = Path(path).expanduser().resolve()
    if not found.is_dir():
        raise SourceError(f"model_roots: {path} is no directory")
    return found


def _look_up(host: str) -> list[Address]:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]


def _is_never_called(address: Address) -> bool:
    return (
        address.is_link_local
        or address.is_multicast
        or address.is_unspecified
        or address in _METADATA
    )


def _within(address: Address) -> list[ipaddress.IPv4Address]:
    """The IPv4 addresses that a router may make of an IPv6 one: by NAT64, 6to4, or Teredo."""
    if isinstance(address, ipaddress.IPv4Address):
        return []
    found = [address.sixtofour, *(address.teredo or ())]
    if any(address in network for network in _TRANSLATED):
        found.append(ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF))
    return [one for one in found if one is not None]


def _is_loopback_name(host: str) -> bool:
    if host.rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
