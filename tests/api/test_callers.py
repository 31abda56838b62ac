"""Who calls, by what gRPC says of a call."""

from __future__ import annotations

from typing import Any

import pytest
from unmask_server.api.callers import Caller, address_of, authenticated, client_of
from unmask_server.catalog.errors import InvalidArgument


class Context:
    """As much of a call as is looked at."""

    def __init__(self, peer: str, *metadata: tuple[str, Any]) -> None:
        self._peer, self._metadata = peer, metadata

    def peer(self) -> str:
        return self._peer

    def auth_context(self) -> dict[str, list[bytes]]:
        return {}

    def invocation_metadata(self) -> tuple[tuple[str, Any], ...]:
        return self._metadata


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:10.1.2.3:4567", "10.1.2.3"),
        ("ipv6:[::1]:4567", "::/64"),
        ("ipv6:%5B2001:db8:1:2:3:4:5:6%5D:4567", "2001:db8:1:2::/64"),
        ("ipv6:[fe80::1%25eth0]:4567", "fe80::/64"),
        ("ipv6:[::ffff:10.1.2.3]:4567", "10.1.2.3"),
        ("unix:/run/unmask.sock", "unix"),
        ("unix:", "unix"),
        ("", ""),
    ],
)
def test_an_address_is_told_without_its_port(peer: str, address: str) -> None:
    assert address_of(peer) == address


def test_a_name_pays_but_buys_no_room() -> None:
    caller = client_of(Context("ipv4:10.1.2.3:1", ("unmask-client", "ann")))  # type: ignore[arg-type]
    assert caller == Caller("", "ann", "10.1.2.3")
    assert (caller.account, caller.limited) == ("ann", "address 10.1.2.3")


def test_who_was_authenticated_is_not_whom_they_say_they_are() -> None:
    before = authenticated.set("token ann")
    try:
        caller = client_of(Context("unix:", ("unmask-client", "x" * 1000)))  # type: ignore[arg-type]
    finally:
        authenticated.reset(before)
    assert (caller.account, caller.limited) == ("token ann", "principal token ann")


def test_a_name_has_a_length() -> None:
    with pytest.raises(InvalidArgument, match="longer than 200"):
        _ = Caller("", "x" * 201, "unix").account
