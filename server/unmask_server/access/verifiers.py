"""The ways to authenticate that the settings ask for."""

from __future__ import annotations

from typing import Protocol

from sqlalchemy import Engine

from unmask_server.access.principals import Principal
from unmask_server.access.settings import AccessSettings
from unmask_server.access.tokens import TokenStore, TokenVerifier


class Verifier(Protocol):
    """One way to authenticate."""

    def knows_form(self, credentials: str) -> bool:
        """Whether credentials look like its own. No secret is needed to tell."""
        ...

    def held(self, credentials: str) -> bool:
        """Whether they held when they were last verified; nobody is asked."""
        ...

    async def verify(self, credentials: str) -> Principal:
        """Whose they are. Raises CredentialsError if they do not hold."""
        ...


def verifiers(settings: AccessSettings, database: Engine) -> list[Verifier]:
    """In the order in which they are asked; empty: nobody has to prove anything.

    Raises:
        ValueError: a setting is wrong, or a library is missing.

    """
    auth = settings.auth or []
    found: list[Verifier] = []
    if "tokens" in auth:
        found.append(TokenVerifier(TokenStore(database)))
    if "oidc" in auth:
        found.append(_oidc(settings))
    return found


def _oidc(settings: AccessSettings) -> Verifier:
    # Loaded late: cryptography is for those who use it.
    try:
        from unmask_server.access.issuer import IssuerKeys
        from unmask_server.access.oidc import OidcVerifier
    except ImportError as error:
        raise ValueError(f"auth: oidc needs {error.name}: pip install 'unmask[oidc]'") from None
    issuer, audience = settings.oidc_issuer, settings.oidc_audience
    if not issuer or not audience:
        raise ValueError("oidc_issuer: auth oidc needs it, and oidc_audience")
    return OidcVerifier(
        IssuerKeys(issuer, settings.oidc_jwks_url, settings.oidc_ca),
        issuer=issuer,
        audience=audience,
        principal_claim=settings.oidc_principal_claim,
        scope_claim=settings.oidc_scope_claim,
        scopes=settings.oidc_scopes,
        leeway=settings.oidc_leeway_seconds,
    )
