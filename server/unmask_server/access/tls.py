"""TLS of the listeners, with certificates that are looked at anew when their files change."""

from __future__ import annotations

import os
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import structlog

log = structlog.get_logger(__name__)

_TRIES = 3
"""How often files are read that change while they are."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where the certificates are."""

    certificate: Path
    """The server's, with those between it and its authority, in PEM."""
    key: Path
    client_ca: Path | None = None
    """Authorities of the clients' certificates. None: clients need none."""

    @property
    def all(self) -> tuple[Path, ...]:
        """Every file."""
        return (self.certificate, self.key, *((self.client_ca,) if self.client_ca else ()))


class Certificates:
    """The certificates of a server. gRPC asks at every handshake, from threads of its own.

    Files that do not go together (a rotation that is half done, a typing error) change nothing: the
    server goes on with those it has, says so in its log, and looks again at the next handshake.
    """

    def __init__(self, files: TlsFiles) -> None:
        """Read them.

        Raises:
            ValueError: they cannot be read or do not go together.

        """
        self._files = files
        self._lock = threading.Lock()
        self._seen: object = None
        self._seen, self._current = self._read()

    def credentials(self) -> grpc.ServerCredentials:
        """For listeners. TLS 1.2 is the least: gRPC offers no older version."""
        fetch: Any = self._fetch  # may return None: nothing is new
        return grpc.dynamic_ssl_server_credentials(
            self._current, fetch, require_client_authentication=bool(self._files.client_ca)
        )

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """What is new, or None."""
        with self._lock:
            try:
                seen = _signature(self._files)
            except OSError:
                seen = None
            if seen == self._seen:
                return None
            try:
                self._seen, self._current = self._read()
            except ValueError as error:
                # One word each time they change, not one for each handshake.
                self._seen = seen
                log.error("new certificates are not taken", reason=str(error))
                return None
        log.info("new certificates", certificate=str(self._files.certificate))
        return self._current

    def _read(self) -> tuple[object, grpc.ServerCertificateConfiguration]:
        files = self._files
        for _ in range(_TRIES):
            try:
                before = _signature(files)
                _check(files)
                key, chain = files.key.read_bytes(), files.certificate.read_bytes()
                roots = files.client_ca.read_bytes() if files.client_ca else None
                if _signature(files) != before:
                    continue
            except OSError as error:
                raise ValueError(f"{error.filename}: {error.strerror}") from None
            return before, grpc.ssl_server_certificate_configuration([(key, chain)], roots)
        raise ValueError(f"{files.certificate} changes while it is read")


def _signature(files: TlsFiles) -> object:
    found = [os.stat(path) for path in files.all]
    return tuple((s.st_ino, s.st_size, s.st_mtime_ns) for s in found)


def _check(files: TlsFiles) -> None:
    """Refuse what gRPC would find out at the first handshake only."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

    def no_password() -> str:
        raise ValueError(f"{files.key} is encrypted; give one that is not, readable by nobody else")

    try:
        context.load_cert_chain(files.certificate, files.key, no_password)
    except ssl.SSLError as error:
        raise ValueError(
            f"{files.certificate} and {files.key} are no certificate and its key: "
            f"{error.reason or error}"
        ) from None
    if files.client_ca:
        try:
            context.load_verify_locations(files.client_ca)
        except ssl.SSLError as error:
            raise ValueError(f"{files.client_ca} holds no certificates: {error}") from None
