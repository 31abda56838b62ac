"""Which addresses may be served how: nothing is open to others unless it was said so."""

from __future__ import annotations

import ipaddress
import shlex
from pathlib import Path

from unmask_server.access.settings import AccessSettings
from unmask_server.access.sources import Sources
from unmask_server.access.tls import TlsFiles
from unmask_server.config import Settings

_LOCAL_SOCKETS = ("unix:", "unix-abstract:")


def is_socket(address: str) -> bool:
    """Whether an address is no network's: a Unix socket."""
    return address.startswith(_LOCAL_SOCKETS)


def is_local(address: str) -> bool:
    """Whether only this machine can connect to an address."""
    if is_socket(address):
        return True
    host = address.rpartition(":")[0].strip("[]").partition("%")[0]
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_listening(settings: Settings) -> TlsFiles | None:
    """Refuse what would be open to others by an oversight. Returns the files for TLS.

    A warning would be read after the first stranger called, so the server does not start.

    Raises:
        ValueError: something that goes with something else is missing, or others could connect in
            the clear or without saying who they are, and nobody said that they may.

    """
    tls = _tls(settings)
    _check_auth(settings)
    exposed = [address for address in settings.listen if not is_local(address)]
    if not exposed:
        return tls
    where = ", ".join(exposed)
    if tls is None and not settings.insecure:
        raise ValueError(
            f"listen: other machines can connect to {where}: give tls_cert and tls_key, or say "
            "--insecure where the network is trusted, or a proxy or mesh does TLS"
        )
    if settings.auth is None and not (tls and tls.client_ca):
        raise ValueError(
            f"listen: other machines can connect to {where}: say how callers prove who they are "
            "(--auth tokens, --auth oidc, or tls_client_ca), or --auth none to let anybody in"
        )
    return tls


def is_open(settings: Settings) -> bool:
    """Whether the server is its user's own: nobody else can connect, and nobody has to log in."""
    return settings.auth in (None, ["none"]) and all(map(is_local, settings.listen))


def sources_of(settings: Settings) -> Sources:
    """What requests may name, by the settings.

    What is launched here was named by the operator, so it may be registered, too.

    Raises:
        ValueError: a root is no directory, or a host cannot be read.

    """
    unset: list[str] | None = None if is_open(settings) else []
    roots = settings.model_roots if settings.model_roots is not None else unset
    if roots is not None:
        launches = map(shlex.split, settings.sglang_launch)
        roots = [*roots, *(launch[0] for launch in launches if launch)]
    hosts = settings.endpoint_hosts if settings.endpoint_hosts is not None else unset
    return Sources(roots, hosts)


def _tls(settings: AccessSettings) -> TlsFiles | None:
    if bool(settings.tls_cert) is not bool(settings.tls_key):
        raise ValueError("tls_cert: goes with tls_key; give both")
    if not settings.tls_cert or not settings.tls_key:
        if settings.tls_client_ca:
            raise ValueError("tls_client_ca: needs tls_cert and tls_key")
        return None
    client_ca = Path(settings.tls_client_ca) if settings.tls_client_ca else None
    return TlsFiles(Path(settings.tls_cert), Path(settings.tls_key), client_ca)


def _check_auth(settings: AccessSettings) -> None:
    auth = settings.auth or []
    if "none" in auth and len(auth) > 1:
        raise ValueError("auth: none goes with nothing else")
    if "oidc" in auth:
        for name in ("oidc_issuer", "oidc_audience"):
            if not getattr(settings, name):
                raise ValueError(f"{name}: auth oidc needs it")
        for name in ("oidc_issuer", "oidc_jwks_url"):
            value = getattr(settings, name)
            if value and not value.startswith("https://"):
                raise ValueError(f"{name}: {value} must begin with https://")
