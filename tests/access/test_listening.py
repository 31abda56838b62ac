"""Nothing is open to others unless it was said so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from unmask_server.access.listening import check_listening, is_local, is_open
from unmask_server.config import Settings

from tests.access.making import Authority


def settings(**given: Any) -> Settings:
    return Settings(**{"listen": ["localhost:0"], **given})


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("localhost:50051", True),
        ("127.0.0.1:1", True),
        ("127.8.8.8:1", True),
        ("[::1]:1", True),
        ("unix:/run/socket", True),
        ("unix-abstract:name", True),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("192.168.0.1:1", False),
        ("example.org:1", False),
        ("localhost.example.org:1", False),
        (":1", False),
    ],
)
def test_which_addresses_are_this_machines_own(address: str, local: bool) -> None:
    assert is_local(address) is local


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "give tls_cert and tls_key, or say --insecure"),
        ({"auth": ["tokens"]}, "give tls_cert and tls_key, or say --insecure"),
        ({"insecure": True}, "say how callers prove who they are"),
        ({"tls": True}, "say how callers prove who they are"),
    ],
)
def test_a_server_that_others_could_reach_by_an_oversight_does_not_start(
    given: dict[str, Any], told: str, authority: Authority
) -> None:
    if given.pop("tls", False):
        certificate, key = authority.issue("server")
        given |= {"tls_cert": str(certificate), "tls_key": str(key)}
    for address in ("0.0.0.0:0", "[::]:0"):
        with pytest.raises(ValueError, match=told):
            check_listening(settings(listen=["localhost:0", address], **given))
    assert check_listening(settings(**given)) is None or "tls_cert" in given


def test_whoever_says_so_may_be_open(authority: Authority) -> None:
    certificate, key = map(str, authority.issue("server"))
    tls = {"tls_cert": certificate, "tls_key": key}
    for given in (
        {"insecure": True, "auth": "none"},
        {"insecure": True, "auth": "tokens"},
        {**tls, "auth": "none"},
        {**tls, "auth": "tokens"},
        {**tls, "tls_client_ca": str(authority.path)},
    ):
        files = check_listening(settings(listen=["0.0.0.0:0"], **given))
        assert (files is not None) is ("tls_cert" in given)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"tls_cert": "a"}, "tls_cert: goes with tls_key"),
        ({"tls_key": "a"}, "tls_cert: goes with tls_key"),
        ({"tls_client_ca": "a"}, "tls_client_ca: needs tls_cert"),
        ({"auth": "none,tokens"}, "none goes with nothing else"),
        ({"auth": "oidc"}, "oidc_issuer: auth oidc needs it"),
        ({"auth": "oidc", "oidc_issuer": "https://i"}, "oidc_audience: auth oidc needs it"),
        (
            {"auth": "oidc", "oidc_issuer": "http://i", "oidc_audience": "a"},
            "must begin with https",
        ),
        ({"auth": "passwords"}, "Input should be 'none', 'tokens' or 'oidc'"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        check_listening(settings(**given))


def test_a_server_is_its_users_own_only_if_nobody_else_can_call() -> None:
    assert is_open(settings())
    assert is_open(settings(auth="none"))
    assert not is_open(settings(auth="tokens"))
    assert not is_open(settings(listen=["localhost:0", "0.0.0.0:0"]))


def test_settings_are_read_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("UNMASK_AUTH", "tokens,oidc")
    monkeypatch.setenv("UNMASK_MODEL_ROOTS", f"{tmp_path}, /models")
    monkeypatch.setenv("UNMASK_ENDPOINT_HOSTS", "")
    monkeypatch.setenv("UNMASK_OIDC_SCOPES", "staff=admin, guest=read")
    found = settings()
    assert found.auth == ["tokens", "oidc"]
    assert found.model_roots == [str(tmp_path), "/models"]
    assert found.endpoint_hosts == []
    assert found.oidc_scopes == {"staff": "admin", "guest": "read"}
