"""Certificates and issuers for tests: real keys, made in a moment."""

from __future__ import annotations

import datetime
import ipaddress
import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass
class Authority:
    """A certificate authority, which signs what it is asked to."""

    folder: Path
    name: str = "ca"

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._certificate = self._sign(self.name, self._key, is_authority=True)
        self.path = self.folder / f"{self.name}.pem"
        self.path.write_bytes(_pem(self._certificate))

    def issue(self, name: str, file: str | None = None) -> tuple[Path, Path]:
        """A certificate for this machine (or a client of that name), and its key: two files."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate, secret = (self.folder / f"{file or name}.{kind}" for kind in ("pem", "key"))
        # As careful people rotate: written beside, then moved into place.
        for path, content in (
            (secret, _private(key)),
            (certificate, _pem(self._sign(name, key))),
        ):
            beside = path.with_suffix(".new")
            beside.write_bytes(content)
            beside.replace(path)
        return certificate, secret

    def _sign(
        self, name: str, key: ec.EllipticCurvePrivateKey, *, is_authority: bool = False
    ) -> x509.Certificate:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else [])
        issuer = subject if is_authority else self._certificate.subject
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        )
        if not is_authority:
            local = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
            builder = builder.add_extension(x509.SubjectAlternativeName(local), critical=False)
        return builder.sign(self._key, hashes.SHA256())


@dataclass
class Issuer:
    """An OpenID Connect issuer on this machine, over HTTPS."""

    url: str
    answers: dict[str, Any] = field(default_factory=dict)
    """By path: what it says, as JSON, or where it redirects to, as a text."""
    asked: list[str] = field(default_factory=list)
    """The paths that were asked for."""
    answering: threading.Event = field(default_factory=threading.Event)
    """Set: it answers; else callers hang until it is."""

    def __post_init__(self) -> None:
        self.answering.set()

    def publish(self, *keys: dict[str, Any], jwks_uri: str | None = None) -> None:
        """Offer keys (JWKs), as issuers do."""
        self.answers["/.well-known/openid-configuration"] = {
            "issuer": self.url,
            "jwks_uri": jwks_uri or f"{self.url}/keys",
        }
        self.answers["/keys"] = {"keys": list(keys)}


@contextmanager
def issuer_at(certificate: Path, key: Path) -> Iterator[Issuer]:
    """Run an issuer with a certificate."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            issuer.asked.append(self.path)
            issuer.answering.wait()
            answer = issuer.answers.get(self.path)
            if isinstance(answer, str):
                self.send_response(302)
                self.send_header("location", answer)
                self.end_headers()
                return
            body = json.dumps(answer).encode()
            self.send_response(200 if answer is not None else 404)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            return

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    issuer = Issuer(f"https://localhost:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield issuer
    finally:
        issuer.answering.set()
        server.shutdown()
        thread.join()
        server.server_close()


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
