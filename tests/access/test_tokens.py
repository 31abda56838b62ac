"""Bearer tokens, on both stores."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time

import pytest
from sqlalchemy import Engine, select
from unmask_server.access import tokens
from unmask_server.access.errors import CredentialsError
from unmask_server.access.principals import Budget, Principal, Scope
from unmask_server.access.tokens import Token, TokenStore, TokenVerifier
from unmask_server.database.connect import read
from unmask_server.database.schema import access_token

NONE = Budget()


@pytest.fixture
def store(database: Engine) -> TokenStore:
    return TokenStore(database)


async def test_a_token_proves_who_holds_it_and_what_they_may(store: TokenStore) -> None:
    budget = Budget(rollouts_per_day=10, tokens=10**12)
    _, secret = store.create("alice", Scope.GROW, expires_at=None, budget=budget)
    found = await TokenVerifier(store).verify(secret)
    assert found == Principal("token:alice", Scope.GROW, budget)


def test_nothing_that_is_kept_is_the_token(database: Engine, store: TokenStore) -> None:
    made, secret = store.create("alice", Scope.READ, expires_at=None, budget=NONE)
    assert len(secret) >= 43
    with read(database) as connection:
        (row,) = connection.execute(select(access_token)).all()
    assert bytes(row.hash) == hashlib.sha256(secret.encode()).digest()
    kept = repr([bytes(v) if isinstance(v, memoryview) else v for v in row])
    assert secret not in kept + repr(made)
    assert secret.removeprefix(tokens.PREFIX)[:12] not in kept + repr(made)


def test_no_two_tokens_are_alike_and_no_two_have_a_name(store: TokenStore) -> None:
    secrets = {
        store.create(f"t{i}", Scope.READ, expires_at=None, budget=NONE)[1] for i in range(20)
    }
    assert len(secrets) == 20
    store.revoke("t3")
    with pytest.raises(ValueError, match="there is a token 't3' already"):
        store.create("t3", Scope.READ, expires_at=None, budget=NONE)
    for name in ("", " ", "x" * 191):
        with pytest.raises(ValueError, match="give a name of 1 to 190 characters"):
            store.create(name, Scope.READ, expires_at=None, budget=NONE)


@pytest.mark.parametrize(
    "credentials",
    [
        "",
        "unmask_",
        "unmask_" + "x" * 43,
        "unmask_" + "x" * 100_000,
        "unmask_" + "é" * 43,
        "unmask_" + "\0" * 43,
        "unmask_' OR 1=1 --" + "x" * 33,
    ],
)
async def test_what_is_no_token_proves_nothing(store: TokenStore, credentials: str) -> None:
    store.create("alice", Scope.ADMIN, expires_at=None, budget=NONE)
    with pytest.raises(CredentialsError) as caught:
        await TokenVerifier(store).verify(credentials)
    assert caught.value.reason.name == "CREDENTIALS_INVALID"
    assert len(credentials) < 20 or credentials not in str(caught.value)


async def test_one_byte_less_or_more_is_another_token(store: TokenStore) -> None:
    _, secret = store.create("alice", Scope.READ, expires_at=None, budget=NONE)
    last = "A" if secret[-1] != "A" else "B"
    for wrong in (secret[:-1], secret + "A", secret[:-1] + last, secret.upper(), f" {secret}"):
        with pytest.raises(CredentialsError):
            await TokenVerifier(store).verify(wrong)


async def test_a_token_ends_when_it_was_said_to(
    store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    _, secret = store.create("alice", Scope.READ, expires_at=now + 60, budget=NONE)
    verifier = TokenVerifier(store)
    assert (await verifier.verify(secret)).name == "token:alice"
    monkeypatch.setattr(time, "time", lambda: now + 61)
    # At once, though the look-up is still remembered.
    with pytest.raises(CredentialsError) as caught:
        await verifier.verify(secret)
    assert caught.value.reason.name == "CREDENTIALS_EXPIRED"
    assert [token.state(time.time()) for token in store.all()] == ["expired"]


async def test_a_revoked_token_ends_on_every_server_within_seconds(
    store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, secret = store.create("alice", Scope.READ, expires_at=None, budget=NONE)
    replicas = [TokenVerifier(store) for _ in range(3)]
    for replica in replicas:
        await replica.verify(secret)
    assert store.revoke("alice") == store.revoke("alice")
    later = time.monotonic() + tokens.FRESH_SECONDS
    assert tokens.FRESH_SECONDS <= 5
    monkeypatch.setattr(time, "monotonic", lambda: later)
    for replica in replicas:
        with pytest.raises(CredentialsError) as caught:
            await replica.verify(secret)
        assert caught.value.reason.name == "CREDENTIALS_REVOKED"


def test_a_token_can_be_revoked_by_its_id(store: TokenStore) -> None:
    made, _ = store.create("alice", Scope.READ, expires_at=None, budget=NONE)
    assert store.revoke(made.id).revoked_at is not None
    with pytest.raises(ValueError, match="there is no token 'bob'"):
        store.revoke("bob")


def looked_up(store: TokenStore, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The digests that will have been looked up, in order."""
    asked: list[bytes] = []
    find = store.find

    def note(digest: bytes) -> Token | None:
        asked.append(digest)
        return find(digest)

    monkeypatch.setattr(store, "find", note)
    return asked


async def test_look_ups_are_remembered_but_never_many(
    store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, secret = store.create("alice", Scope.READ, expires_at=None, budget=NONE)
    asked = looked_up(store, monkeypatch)
    monkeypatch.setattr(tokens, "REMEMBERED", 3)
    verifier = TokenVerifier(store)
    for _ in range(5):
        await verifier.verify(secret)
    assert len(asked) == 1
    for i in range(10):
        with pytest.raises(CredentialsError):
            await verifier.verify(f"unmask_{i:043}")
    assert len(verifier._missing) == 3
    await verifier.verify(secret)
    # Those that there are not push out none that there are.
    assert len(asked) == 11


async def test_made_up_tokens_hold_up_none_that_was_there_before(
    store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, secret = store.create("alice", Scope.READ, expires_at=None, budget=NONE)
    verifier = TokenVerifier(store)
    await verifier.verify(secret)
    monkeypatch.setattr(tokens, "FRESH_SECONDS", 0.0)
    go_on = threading.Event()

    def slow(digest: bytes) -> Token | None:
        if digest == tokens.hash_of(secret):
            return made
        go_on.wait()
        return None

    monkeypatch.setattr(store, "find", slow)
    flood = [asyncio.create_task(verifier.verify(f"unmask_{i:043}")) for i in range(50)]
    try:
        # All look-ups of unknown tokens wait for the database, and more for these.
        while not verifier._asking_unknown.locked():  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert (await verifier.verify(secret)).name == "token:alice"
    finally:
        go_on.set()
    failed = await asyncio.gather(*flood, return_exceptions=True)
    assert all(isinstance(error, CredentialsError) for error in failed)


async def test_a_token_that_many_calls_bring_is_looked_up_once(
    store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, secret = store.create("alice", Scope.READ, expires_at=None, budget=NONE)
    asked = looked_up(store, monkeypatch)
    monkeypatch.setattr(tokens, "UNKNOWN_AT_ONCE", 1)
    verifier = TokenVerifier(store)
    await asyncio.gather(*(verifier.verify(secret) for _ in range(20)))
    assert len(asked) == 1
