"""Certificates and issuers, made once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.access.making import Authority, Issuer, issuer_at


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture
def issuer(authority: Authority) -> Iterator[Issuer]:
    with issuer_at(*authority.issue("issuer")) as issuer:
        yield issuer
