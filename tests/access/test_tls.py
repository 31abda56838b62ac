"""TLS on real listeners, with certificates that are replaced while the server serves."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import unmask
from structlog.testing import capture_logs
from unmask_server.access.tls import Certificates, TlsFiles
from unmask_server.app import build
from unmask_server.config import Settings
from unmask_server.database.migrate import migrate
from unmask_server.serve import running

from tests.access.making import Authority

HEALTH = "/grpc.health.v1.Health/Check"


@asynccontextmanager
async def serving_tls(folder: Path, authority: Authority, **options: Any) -> AsyncIterator[str]:
    """A server with a certificate of an authority; yields its address."""
    url = f"sqlite:///{folder}/unmask.db"
    migrate(url)
    certificate, key = authority.issue("server")
    settings = Settings(
        database=url,
        listen=["localhost:0"],
        tls_cert=str(certificate),
        tls_key=str(key),
        grace_seconds=0.0,
        **options,
    )
    async with running(settings, build(settings)) as (address,):
        yield address


async def answers(address: str, **arguments: Any) -> bool:
    """Whether a new client gets an answer."""
    client = unmask.AsyncClient(address, **arguments)
    try:
        await client.with_timeout(20).statistics()
    except unmask.UnavailableError:
        return False
    else:
        return True
    finally:
        await client.close()


async def test_certificates_are_replaced_while_it_serves(
    tmp_path: Path, authority: Authority
) -> None:
    other = Authority(tmp_path / "other")
    async with serving_tls(tmp_path, authority) as address:
        assert await answers(address, ca=authority.path)
        assert not await answers(address, ca=other.path)
        # A client that is connected goes on through the change.
        staying = unmask.AsyncClient(address, ca=authority.path)
        await staying.statistics()
        certificate, key = other.issue("server")
        os.replace(key, authority.folder / "server.key")
        os.replace(certificate, authority.folder / "server.pem")
        assert await answers(address, ca=other.path)
        assert not await answers(address, ca=authority.path)
        await staying.statistics()
        await staying.close()


async def test_a_rotation_that_is_half_done_changes_nothing(
    tmp_path: Path, authority: Authority
) -> None:
    async with serving_tls(tmp_path, authority) as address:
        _, key = Authority(tmp_path / "other").issue("server")
        with capture_logs() as logs:
            os.replace(key, authority.folder / "server.key")
            for _ in range(3):
                assert await answers(address, ca=authority.path)
            (authority.folder / "server.key").unlink()
            assert await answers(address, ca=authority.path)
        told = [entry["reason"] for entry in logs if entry["log_level"] == "error"]
        assert len(told) == 2
        assert "are no certificate and its key" in told[0]
        authority.issue("server")
        assert await answers(address, ca=authority.path)


async def test_clients_without_a_certificate_are_turned_away_where_it_is_asked_for(
    tmp_path: Path, authority: Authority
) -> None:
    clients = Authority(tmp_path / "clients", "clients")
    strangers = Authority(tmp_path / "strangers", "strangers")
    async with serving_tls(tmp_path, authority, tls_client_ca=str(clients.path)) as address:
        cert, key = clients.issue("alice")
        with capture_logs() as logs:
            assert await answers(address, ca=authority.path, cert=cert, key=key)
            # A line is written after its answer was sent.
            async with asyncio.timeout(60):
                while not any(line["event"] == "call" for line in logs):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        # It is known by its certificate.
        assert [line["client"] for line in logs if line["event"] == "call"] == ["cert:alice"]
        assert not await answers(address, ca=authority.path)
        cert, key = strangers.issue("mallory")
        assert not await answers(address, ca=authority.path, cert=cert, key=key)


async def may(address: str, **arguments: Any) -> list[bool]:
    """Whether a client may read, and grow."""
    found = []
    client = unmask.AsyncClient(address, **arguments)
    for call in (client.statistics, lambda: client.register_verifier("exact")):
        try:
            await call()
        except unmask.PermissionDeniedError:
            found.append(False)
        else:
            found.append(True)
    await client.close()
    return found


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [True, False]),
        ({"auth": ["none"]}, [True, False]),
        ({"tls_client_scope": "grow"}, [True, True]),
    ],
)
async def test_a_certificate_allows_what_the_setting_says(
    tmp_path: Path, authority: Authority, options: dict[str, Any], expected: list[bool]
) -> None:
    clients = Authority(tmp_path / "clients", "clients")
    listen = ["localhost:0", f"unix:{tmp_path}/socket"]
    url = f"sqlite:///{tmp_path}/unmask.db"
    migrate(url)
    certificate, key = map(str, authority.issue("server"))
    settings = Settings(
        database=url,
        listen=listen,
        tls_cert=certificate,
        tls_key=key,
        tls_client_ca=str(clients.path),
        grace_seconds=0.0,
        **options,
    )
    async with running(settings, build(settings)) as (address, local):
        for name in ("alice", ""):
            cert, secret = clients.issue(name, "client")
            assert await may(address, ca=authority.path, cert=cert, key=secret) == expected
        # Who may open the socket's file is the operator's.
        assert await may(local) == [True, True]


async def test_plain_text_and_old_versions_are_refused(
    tmp_path: Path, authority: Authority
) -> None:
    async with serving_tls(tmp_path, authority) as address:
        assert not await answers(address, tls=False)
        port = int(address.rpartition(":")[2])

        async def version(most: ssl.TLSVersion) -> str | None:
            context = ssl.create_default_context(cafile=str(authority.path))
            context.set_alpn_protocols(["h2"])
            # OpenSSL itself would not offer the old ones otherwise.
            context.set_ciphers("ALL:@SECLEVEL=0")
            context.minimum_version = ssl.TLSVersion.TLSv1
            context.maximum_version = most
            _, writer = await asyncio.open_connection(
                "localhost", port, ssl=context, server_hostname="localhost"
            )
            writer.close()
            return writer.get_extra_info("ssl_object").version()  # type: ignore[no-any-return]

        assert await version(ssl.TLSVersion.TLSv1_3) == "TLSv1.3"
        assert await version(ssl.TLSVersion.TLSv1_2) == "TLSv1.2"
        for old in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await version(old)


async def test_a_socket_file_is_served_in_the_clear_beside_it(
    tmp_path: Path, authority: Authority
) -> None:
    url = f"sqlite:///{tmp_path}/unmask.db"
    migrate(url)
    certificate, key = authority.issue("server")
    settings = Settings(
        database=url,
        listen=["localhost:0", f"unix:{tmp_path}/socket"],
        tls_cert=str(certificate),
        tls_key=str(key),
        grace_seconds=0.0,
    )
    async with running(settings, build(settings)) as (address, local):
        assert await answers(address, ca=authority.path)
        assert await answers(local)


def test_what_is_no_certificate_is_refused_at_the_start(
    tmp_path: Path, authority: Authority
) -> None:
    certificate, key = authority.issue("server")
    _, other = authority.issue("other")
    with pytest.raises(ValueError, match="are no certificate and its key"):
        Certificates(TlsFiles(certificate, other))
    with pytest.raises(ValueError, match="No such file"):
        Certificates(TlsFiles(tmp_path / "none.pem", key))
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("nothing")
    with pytest.raises(ValueError, match="holds no certificates"):
        Certificates(TlsFiles(certificate, key, garbage))


def test_the_client_says_what_does_not_go_together(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = authority.issue("alice")
    with pytest.raises(ValueError, match="cert: goes with key"):
        unmask.Client("host:1", cert=certificate)
    with pytest.raises(ValueError, match="tls: goes with neither ca"):
        unmask.Client("host:1", tls=False, ca=authority.path)
    with pytest.raises(FileNotFoundError):
        unmask.Client("host:1", ca="no/such/file")
    with pytest.raises(ValueError, match="in the clear"):
        unmask.Client("host:1", token="t")
    for name in ("CERT", "KEY"):  # those are a server's
        monkeypatch.setenv(f"UNMASK_TLS_{name}", "no/such/file")
    monkeypatch.setenv("UNMASK_TLS_CA", str(authority.path))
    monkeypatch.setenv("UNMASK_CLIENT_CERT", str(certificate))
    monkeypatch.setenv("UNMASK_CLIENT_KEY", str(key))
    unmask.Client("host:1", token="t").close()


def test_credentials_of_grpc_are_taken_as_they_are() -> None:
    unmask.Client("host:1", token="t", tls=grpc.ssl_channel_credentials()).close()
