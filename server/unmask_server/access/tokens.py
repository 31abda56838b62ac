"""Bearer tokens: made, listed, revoked, and found by their hash.

A token is 256 random bits, so what is kept of it is its SHA-256: nobody can go back from that, and
there is nothing to guess that a slow hash (bcrypt, Argon2) would have to defend, as there is with
passwords that people choose. A slow hash would cost each call what it costs a thief.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
import time
from collections import OrderedDict
from dataclasses import dataclass

from sqlalchemy import Engine, insert, select, update
from sqlalchemy.exc import IntegrityError

from unmask_server.access.errors import CredentialsError
from unmask_server.access.principals import Budget, Principal, Scope
from unmask_server.database.connect import query, transact
from unmask_server.database.rows import AnyRow
from unmask_server.database.schema import access_token as table
from unmask_server.reasons import Reason

PREFIX = "unmask_"
"""How a token begins, so that scanners for leaked secrets can know one."""
SECRET_BYTES = 32
_LENGTH = len(PREFIX) + 43
MAX_NAME = 190
FRESH_SECONDS = 3.0
"""How long a look-up stands: a revoked token ends so soon, on every server."""
REMEMBERED = 4096
"""Tokens kept in memory; as many again that there are not."""
AT_ONCE = 8
"""Look-ups at a time of tokens that were there before: made-up ones must not hold them up."""
UNKNOWN_AT_ONCE = 4
"""Look-ups at a time of all others: made-up tokens must not take all connections."""


@dataclass(frozen=True, slots=True)
class Token:
    """A token, without its secret. Times in seconds since the epoch."""

    id: str
    name: str
    scope: Scope
    budget: Budget
    created_at: float
    expires_at: float | None
    revoked_at: float | None

    @property
    def principal(self) -> Principal:
        """Whose calls it proves."""
        return Principal(f"token:{self.name}", self.scope, self.budget)

    def state(self, now: float) -> str:
        """`valid`, `expired` or `revoked`."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= now else "valid"


def hash_of(secret: str) -> bytes:
    """What is kept of a token; 32 bytes."""
    return hashlib.sha256(secret.encode()).digest()


class TokenStore:
    """Tokens in the database. Synchronous: called from threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def create(
        self, name: str, scope: Scope, *, expires_at: float | None, budget: Budget
    ) -> tuple[Token, str]:
        """Make a token. Returns it, and the secret, which is kept nowhere.

        Raises:
            ValueError: no name, a long one, or one that is taken, also by a revoked token: quotas
                go by names.

        """
        if not name.strip() or len(name) > MAX_NAME:
            raise ValueError(f"give a name of 1 to {MAX_NAME} characters")
        secret = PREFIX + secrets.token_urlsafe(SECRET_BYTES)
        digest = hash_of(secret)
        values = {
            "id": f"tok-{digest.hex()[:12]}",
            "name": name,
            "hash": digest,
            "scope": scope.label,
            "rollouts_per_day": budget.rollouts_per_day,
            "tokens_per_day": budget.tokens_per_day,
            "rollouts": budget.rollouts,
            "tokens": budget.tokens,
            "created_at": time.time(),
            "expires_at": expires_at,
        }
        try:
            transact(self._engine, lambda c: c.execute(insert(table).values(values)))
        except IntegrityError:
            raise ValueError(f"there is a token {name!r} already; choose another name") from None
        found = self.find(digest)
        assert found is not None
        return found, secret

    def all(self) -> list[Token]:
        """All tokens, oldest first."""
        wanted = select(table).order_by(table.c.created_at, table.c.id)
        return [_token(row) for row in query(self._engine, lambda c: c.execute(wanted).all())]

    def revoke(self, name: str) -> Token:
        """End a token by its name or id; harmless when repeated.

        Raises:
            ValueError: there is none.

        """
        is_it = (table.c.name == name) | (table.c.id == name)
        change = update(table).where(is_it, table.c.revoked_at.is_(None))
        transact(self._engine, lambda c: c.execute(change.values(revoked_at=time.time())))
        row = query(self._engine, lambda c: c.execute(select(table).where(is_it)).first())
        if row is None:
            raise ValueError(f"there is no token {name!r}; `token list` shows them")
        return _token(row)

    def find(self, digest: bytes) -> Token | None:
        """The token of a hash, whatever its state."""
        wanted = select(table).where(table.c.hash == digest)
        row = query(self._engine, lambda c: c.execute(wanted).first())
        # The index compares hashes, whose bytes tell nothing of a token's; this costs nothing.
        if row is None or not hmac.compare_digest(bytes(row.hash), digest):
            return None
        return _token(row)


class TokenVerifier:
    """Who holds a token, from memory or the database."""

    def __init__(self, store: TokenStore) -> None:
        self._store = store
        self._asking = asyncio.Semaphore(AT_ONCE)
        self._asking_unknown = asyncio.Semaphore(UNKNOWN_AT_ONCE)
        self._found: OrderedDict[bytes, tuple[float, Token]] = OrderedDict()
        self._missing: OrderedDict[bytes, tuple[float, None]] = OrderedDict()

    def knows_form(self, credentials: str) -> bool:
        """Whether credentials look like one of these tokens."""
        return credentials.startswith(PREFIX)

    def held(self, credentials: str) -> bool:
        """Whether they held when they were last looked up; nothing is looked up."""
        found = self._found.get(hash_of(credentials))
        return found is not None and found[1].state(time.time()) == "valid"

    async def verify(self, credentials: str) -> Principal:
        """Whose token it is.

        Raises:
            CredentialsError: it is unknown, revoked, or has expired.

        """
        if len(credentials) != _LENGTH or not credentials.isascii():
            raise CredentialsError(Reason.CREDENTIALS_INVALID, "this is no token of this server")
        token = await self._find(hash_of(credentials))
        if token is None:
            raise CredentialsError(Reason.CREDENTIALS_INVALID, "this is no token of this server")
        match token.state(time.time()):
            case "revoked":
                raise CredentialsError(
                    Reason.CREDENTIALS_REVOKED, f"the token {token.id} was revoked"
                )
            case "expired":
                raise CredentialsError(
                    Reason.CREDENTIALS_EXPIRED, f"the token {token.id} has expired"
                )
        return token.principal

    async def _find(self, digest: bytes) -> Token | None:
        if (known := self._fresh(digest)) is not None:
            return known[1]
        async with self._asking if digest in self._found else self._asking_unknown:
            # Another call may have looked it up meanwhile.
            if (known := self._fresh(digest)) is not None:
                return known[1]
            now = time.monotonic()
            token = await asyncio.to_thread(self._store.find, digest)
        self._found.pop(digest, None)
        self._missing.pop(digest, None)
        if token is None:
            self._missing[digest] = (now, None)
        else:
            self._found[digest] = (now, token)
        for kept in (self._found, self._missing):
            while len(kept) > REMEMBERED:
                kept.popitem(last=False)
        return token

    def _fresh(self, digest: bytes) -> tuple[float, Token | None] | None:
        """A look-up that still stands."""
        known = self._found.get(digest) or self._missing.get(digest)
        return known if known and time.monotonic() - known[0] < FRESH_SECONDS else None


def _token(row: AnyRow) -> Token:
    budget = Budget(row.rollouts_per_day, row.tokens_per_day, row.rollouts, row.tokens)
    return Token(
        id=row.id,
        name=row.name,
        scope=Scope.named(row.scope),
        budget=budget,
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
    )
