"""Tokens of an OpenID Connect issuer (JWTs), verified with PyJWT."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import jwt

from unmask_server.access.errors import CredentialsError
from unmask_server.access.issuer import IssuerKeys, Jwk
from unmask_server.access.principals import Principal, Scope
from unmask_server.reasons import Reason

ALGORITHMS: Mapping[str, tuple[str, ...]] = {
    "RSA": ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    "EC": ("ES256", "ES384", "ES512"),
    "OKP": ("EdDSA",),
}
"""By the type of a key, what it may sign by. Nothing symmetric, and never `none`: what verifies a
token is no secret, so a token whose signature is made from it proves nothing."""

REMEMBERED = 4096
"""Tokens that held, of which the digests are kept in memory."""

_REQUIRED = ["exp", "iss", "aud"]
_MAX_NAME = 190


class OidcVerifier:
    """Who holds an issuer's token, by its signature and its claims."""

    def __init__(
        self,
        keys: IssuerKeys,
        *,
        issuer: str,
        audience: str,
        principal_claim: str,
        scope_claim: str,
        scopes: Mapping[str, str],
        leeway: float,
    ) -> None:
        """See `AccessSettings` for the arguments."""
        self._keys = keys
        self._issuer = issuer
        self._audience = audience
        self._principal_claim = principal_claim
        self._scope_claim = scope_claim.split(".")
        self._scopes = {value: Scope.named(name) for value, name in scopes.items()}
        self._leeway = leeway
        self._held: OrderedDict[bytes, None] = OrderedDict()

    def knows_form(self, credentials: str) -> bool:
        """Whether credentials look like a signed JWT: three parts."""
        return credentials.count(".") == 2

    def held(self, credentials: str) -> bool:
        """Whether they held when they were last verified; nobody is asked."""
        return _digest(credentials) in self._held

    async def verify(self, credentials: str) -> Principal:
        """Whose token it is.

        Raises:
            CredentialsError: it does not hold, or names nobody, or allows nothing.
            IssuerError: the issuer's keys cannot be had.

        """
        try:
            header = jwt.get_unverified_header(credentials)
        except jwt.PyJWTError as error:
            raise _invalid(f"the token is no JWT: {error}") from None
        algorithm, kid = header.get("alg"), header.get("kid")
        # Before anybody is asked for a key: what no key may be used for needs none.
        if not any(algorithm in allowed for allowed in ALGORITHMS.values()):
            raise _invalid("the token is signed by an algorithm that is not allowed")
        found = await self._keys.find(kid if isinstance(kid, str) else None)
        if found is None:
            raise _invalid("the token is signed by a key that the issuer does not publish")
        principal = self._principal(self._claims(credentials, found, str(algorithm)))
        self._held[digest := _digest(credentials)] = None
        self._held.move_to_end(digest)
        if len(self._held) > REMEMBERED:
            self._held.popitem(last=False)
        return principal

    def _claims(self, credentials: str, found: Jwk, algorithm: str) -> Mapping[str, Any]:
        if algorithm not in ALGORITHMS.get(str(found.get("kty")), ()) or (
            found.get("alg", algorithm) != algorithm
        ):
            raise _invalid("the token is signed by an algorithm that is not its key's")
        try:
            claims: Mapping[str, Any] = jwt.decode(
                credentials,
                jwt.PyJWK(dict(found), algorithm),
                algorithms=[algorithm],
                audience=self._audience,
                issuer=self._issuer,
                leeway=self._leeway,
                options={"require": _REQUIRED, "enforce_minimum_key_length": True},
            )
        except jwt.ExpiredSignatureError:
            raise CredentialsError(Reason.CREDENTIALS_EXPIRED, "the token has expired") from None
        except jwt.PyJWTError as error:
            raise _invalid(f"the token does not hold: {error}") from None
        return claims

    def _principal(self, claims: Mapping[str, Any]) -> Principal:
        name = claims.get(self._principal_claim)
        if not isinstance(name, str) or not name:
            raise _invalid(f"the token has no claim {self._principal_claim!r} that names a caller")
        if len(name) > _MAX_NAME:
            name = hashlib.sha256(name.encode()).hexdigest()
        given: Any = claims
        for part in self._scope_claim:
            given = given.get(part) if isinstance(given, Mapping) else None
        values = given.split() if isinstance(given, str) else given
        values = values if isinstance(values, list) else []
        allowed = [self._scopes[v] for v in values if isinstance(v, str) and v in self._scopes]
        if not allowed:
            raise _invalid(
                f"the token's {'.'.join(self._scope_claim)} holds none of {', '.join(self._scopes)}"
            )
        return Principal(f"oidc:{name}", max(allowed))


def _digest(credentials: str) -> bytes:
    return hashlib.sha256(credentials.encode(errors="replace")).digest()


def _invalid(message: str) -> CredentialsError:
    return CredentialsError(Reason.CREDENTIALS_INVALID, message)
