"""Tokens of an issuer: a real one on this machine, with real keys."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import grpc
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from unmask_server.access import issuer as issuers
from unmask_server.access.errors import CredentialsError, IssuerError
from unmask_server.access.issuer import IssuerKeys
from unmask_server.access.oidc import OidcVerifier
from unmask_server.access.principals import Principal, Scope
from unmask_server.access.settings import SCOPE_NAMES

from tests.access.making import Authority, Issuer
from tests.access.test_calls import bearing, outcome
from tests.e2e.conftest import serving

AUDIENCE = "unmask.example"
RSA = rsa.generate_private_key(65537, 2048)
OTHER = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()


def jwk(key: Any, kid: str, **more: str) -> dict[str, Any]:
    public = key.public_key()
    match public:
        case rsa.RSAPublicKey():
            kind: Any = jwt.algorithms.RSAAlgorithm
        case ec.EllipticCurvePublicKey():
            kind = jwt.algorithms.ECAlgorithm
        case _:
            kind = jwt.algorithms.OKPAlgorithm
    return {**json.loads(kind.to_jwk(public)), "kid": kid, "use": "sig", **more}


def signed(
    issuer: Issuer, key: Any = RSA, algorithm: str = "RS256", kid: str | None = "one", **claims: Any
) -> str:
    said = {
        "iss": issuer.url,
        "aud": AUDIENCE,
        "sub": "alice",
        "exp": time.time() + 600,
        "scope": "openid unmask:grow",
        **claims,
    }
    said = {name: value for name, value in said.items() if value is not None}
    return jwt.encode(said, key, algorithm, headers={"kid": kid} if kid else None)


def verifier(issuer: Issuer, authority: Authority, **changes: Any) -> OidcVerifier:
    keys = IssuerKeys(issuer.url, changes.pop("jwks_url", None), str(authority.path))
    settings = {
        "issuer": issuer.url,
        "audience": AUDIENCE,
        "principal_claim": "sub",
        "scope_claim": "scope",
        "scopes": SCOPE_NAMES,
        "leeway": 30.0,
        **changes,
    }
    return OidcVerifier(keys, **settings)


async def test_a_token_of_the_issuer_proves_who_holds_it(
    issuer: Issuer, authority: Authority
) -> None:
    issuer.publish(jwk(RSA, "one"))
    found = await verifier(issuer, authority).verify(signed(issuer))
    assert found == Principal("oidc:alice", Scope.GROW)


@pytest.mark.parametrize(
    ("key", "algorithm"),
    [(RSA, "RS256"), (RSA, "PS384"), (EC, "ES256"), (ED, "EdDSA")],
)
async def test_every_allowed_algorithm_verifies(
    issuer: Issuer, authority: Authority, key: Any, algorithm: str
) -> None:
    issuer.publish(jwk(OTHER, "other"), jwk(key, "one"))
    await verifier(issuer, authority).verify(signed(issuer, key, algorithm))


@pytest.mark.parametrize(
    ("claims", "told"),
    [
        ({"aud": "another.example"}, "Audience"),
        ({"aud": None}, "aud"),
        ({"iss": "https://evil.example"}, "issuer"),
        ({"iss": None}, "iss"),
        ({"exp": None}, "exp"),
        ({"nbf": time.time() + 600}, "not yet valid"),
        ({"sub": None}, "no claim 'sub'"),
        ({"scope": "openid profile"}, "holds none of unmask:read"),
        ({"scope": None}, "holds none of unmask:read"),
        ({"scope": {"unmask:admin": True}}, "holds none of unmask:read"),
        ({"scope": [["unmask:admin"]]}, "holds none of unmask:read"),
    ],
)
async def test_claims_that_are_wrong_or_missing_prove_nothing(
    issuer: Issuer, authority: Authority, claims: dict[str, Any], told: str
) -> None:
    issuer.publish(jwk(RSA, "one"))
    with pytest.raises(CredentialsError, match=told) as caught:
        await verifier(issuer, authority).verify(signed(issuer, **claims))
    assert caught.value.reason.name == "CREDENTIALS_INVALID"


async def test_a_token_that_has_expired_is_told_so_but_clocks_may_differ(
    issuer: Issuer, authority: Authority
) -> None:
    issuer.publish(jwk(RSA, "one"))
    asked = verifier(issuer, authority)
    with pytest.raises(CredentialsError) as caught:
        await asked.verify(signed(issuer, exp=time.time() - 31))
    assert caught.value.reason.name == "CREDENTIALS_EXPIRED"
    await asked.verify(signed(issuer, exp=time.time() - 10))


async def test_no_signature_is_no_proof(issuer: Issuer, authority: Authority) -> None:
    issuer.publish(jwk(RSA, "one"))
    asked = verifier(issuer, authority)
    unsigned = signed(issuer, key=None, algorithm="none")
    head, body, _ = signed(issuer).split(".")
    for token in (unsigned, f"{head}.{body}.", unsigned + signed(issuer).split(".")[2]):
        with pytest.raises(CredentialsError) as caught:
            await asked.verify(token)
        assert caught.value.reason.name == "CREDENTIALS_INVALID"


async def test_a_public_key_is_no_secret(issuer: Issuer, authority: Authority) -> None:
    """HS256 with the issuer's public key as the secret: everybody knows that."""
    published = jwk(RSA, "one")
    issuer.publish(published)
    pem = RSA.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    asked = verifier(issuer, authority)
    for secret in (pem, json.dumps(published).encode(), published["n"].encode()):
        # PyJWT itself refuses to sign so; its HMAC does not.
        head, body = (
            jwt.utils.base64url_encode(json.dumps(part).encode())
            for part in (
                {"alg": "HS256", "typ": "JWT", "kid": "one"},
                jwt.decode(signed(issuer), options={"verify_signature": False}),
            )
        )
        hmac = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)
        signature = jwt.utils.base64url_encode(hmac.sign(head + b"." + body, secret))
        with pytest.raises(CredentialsError, match="not allowed"):
            await asked.verify(b".".join((head, body, signature)).decode())
    assert issuer.asked == []


async def test_an_issuer_cannot_make_a_shared_secret_a_key(
    issuer: Issuer, authority: Authority
) -> None:
    issuer.publish({"kty": "oct", "kid": "one", "k": "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0"})
    with pytest.raises(CredentialsError, match="not its key's"):
        await verifier(issuer, authority).verify(signed(issuer))


async def test_a_key_signs_only_by_its_own_algorithm(issuer: Issuer, authority: Authority) -> None:
    issuer.publish(jwk(RSA, "one", alg="RS512"))
    asked = verifier(issuer, authority)
    with pytest.raises(CredentialsError, match="not its key's"):
        await asked.verify(signed(issuer))
    await asked.verify(signed(issuer, algorithm="RS512"))


async def test_another_ones_signature_or_a_changed_body_is_none(
    issuer: Issuer, authority: Authority
) -> None:
    issuer.publish(jwk(RSA, "one"))
    asked = verifier(issuer, authority)
    head, _, signature = signed(issuer).split(".")
    _, body, _ = signed(issuer, scope="unmask:admin").split(".")
    for token in (signed(issuer, OTHER), f"{head}.{body}.{signature}"):
        with pytest.raises(CredentialsError, match="Signature verification failed"):
            await asked.verify(token)


async def test_short_keys_are_not_believed(issuer: Issuer, authority: Authority) -> None:
    short = rsa.generate_private_key(65537, 1024)
    issuer.publish(jwk(short, "one"))
    with pytest.warns(match="key is 1024 bits"):
        token = signed(issuer, short)
    with pytest.raises(CredentialsError, match="1024 bits"):
        await verifier(issuer, authority).verify(token)


@pytest.mark.parametrize("token", ["", "..", "a.b.c", "é.é.é", "e30.e30.e30", "." * 2 + "x" * 9000])
async def test_what_is_no_jwt_is_told_so(issuer: Issuer, authority: Authority, token: str) -> None:
    with pytest.raises(CredentialsError):
        await verifier(issuer, authority).verify(token)
    assert issuer.asked == []


async def test_keys_are_fetched_once_and_again_when_they_rotate(
    issuer: Issuer, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    issuer.publish(jwk(RSA, "one"))
    asked = verifier(issuer, authority)
    for _ in range(5):
        await asked.verify(signed(issuer))
    assert issuer.asked == ["/.well-known/openid-configuration", "/keys"]
    issuer.publish(jwk(OTHER, "two"))
    monkeypatch.setattr(issuers, "PAUSE_SECONDS", 0.0)
    await asked.verify(signed(issuer, OTHER, kid="two"))
    assert len(issuer.asked) == 4
    with pytest.raises(CredentialsError, match="does not publish"):
        await asked.verify(signed(issuer))


async def test_made_up_key_ids_do_not_make_the_server_call_the_issuer(
    issuer: Issuer, authority: Authority
) -> None:
    issuer.publish(jwk(RSA, "one"))
    asked = verifier(issuer, authority)
    for i in range(20):
        with pytest.raises(CredentialsError, match="does not publish"):
            await asked.verify(signed(issuer, kid=f"made-up-{i}"))
    assert len(issuer.asked) == 2


async def test_without_an_id_the_only_key_is_meant_and_of_several_none(
    issuer: Issuer, authority: Authority
) -> None:
    issuer.publish(jwk(RSA, "one"))
    await verifier(issuer, authority).verify(signed(issuer, kid=None))
    issuer.publish(jwk(RSA, "one"), jwk(OTHER, "two"))
    with pytest.raises(CredentialsError, match="does not publish"):
        await verifier(issuer, authority).verify(signed(issuer, kid=None))


async def test_keys_that_are_known_are_believed_while_the_issuer_is_away(
    issuer: Issuer, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    issuer.publish(jwk(RSA, "one"))
    asked = verifier(issuer, authority)
    await asked.verify(signed(issuer))
    issuer.answers.clear()
    monkeypatch.setattr(issuers, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(issuers, "FRESH_SECONDS", 0.0)
    await asked.verify(signed(issuer))
    monkeypatch.setattr(issuers, "STALE_SECONDS", 0.0)
    with pytest.raises(IssuerError):
        await asked.verify(signed(issuer))


async def test_an_issuer_that_hangs_holds_up_no_token_whose_key_is_known(
    issuer: Issuer, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    issuer.publish(jwk(RSA, "one"))
    asked = verifier(issuer, authority)
    await asked.verify(signed(issuer))
    issuer.answering.clear()
    monkeypatch.setattr(issuers, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(issuers, "FETCH_SECONDS", 60.0)
    monkeypatch.setattr(issuers, "PATIENCE_SECONDS", 60.0)
    # More than half as old as keys become: they are fetched, and nobody waits.
    asked._keys._fetched -= 0.75 * issuers.FRESH_SECONDS
    await asked.verify(signed(issuer))
    assert asked._keys._fetching is not None
    # Older: those that come in a fetch's first moment wait, and that moment is over.
    asked._keys._fetched -= issuers.FRESH_SECONDS
    monkeypatch.setattr(issuers, "PATIENCE_SECONDS", 0.0)
    await asked.verify(signed(issuer))
    # What cannot be verified without a key waits, but not for ever.
    monkeypatch.setattr(issuers, "WAIT_SECONDS", 0.01)
    with pytest.raises(IssuerError):
        await asked.verify(signed(issuer, OTHER, kid="two"))
    issuer.publish(jwk(OTHER, "two"))
    issuer.answering.set()
    monkeypatch.setattr(issuers, "WAIT_SECONDS", 60.0)
    await asked.verify(signed(issuer, OTHER, kid="two"))


async def test_keys_are_taken_from_the_issuer_and_from_nobody_it_points_to(
    issuer: Issuer, authority: Authority, tmp_path: Path
) -> None:
    issuer.publish(jwk(OTHER, "one"), jwks_uri="https://evil.example/keys")
    with pytest.raises(IssuerError):
        await verifier(issuer, authority).verify(signed(issuer, OTHER))
    # A redirect is not followed, not even to the issuer itself.
    issuer.publish(jwk(RSA, "one"))
    issuer.answers["/moved"] = issuer.answers["/keys"]
    issuer.answers["/keys"] = f"{issuer.url}/moved"
    with pytest.raises(IssuerError):
        await verifier(issuer, authority).verify(signed(issuer))
    assert "/moved" not in issuer.asked
    # What the operator names is asked.
    asked = verifier(issuer, authority, jwks_url=f"{issuer.url}/moved")
    await asked.verify(signed(issuer))
    # One whose certificate nobody vouches for is no issuer.
    with pytest.raises(IssuerError):
        await verifier(issuer, Authority(tmp_path)).verify(signed(issuer))


async def test_claims_may_be_named_otherwise_and_lie_deeper(
    issuer: Issuer, authority: Authority
) -> None:
    issuer.publish(jwk(RSA, "one"))
    asked = verifier(
        issuer,
        authority,
        principal_claim="email",
        scope_claim="realm_access.roles",
        scopes={"researcher": "grow", "guest": "read"},
    )
    token = signed(
        issuer, email="a@example", scope=None, realm_access={"roles": ["guest", "researcher"]}
    )
    assert await asked.verify(token) == Principal("oidc:a@example", Scope.GROW)


async def test_a_server_takes_the_issuers_tokens_beside_its_own(
    issuer: Issuer, authority: Authority, tmp_path: Path
) -> None:
    issuer.publish(jwk(RSA, "one"))
    options = {
        "auth": ["tokens", "oidc"],
        "oidc_issuer": issuer.url,
        "oidc_audience": AUDIENCE,
        "oidc_ca": str(authority.path),
    }
    async with serving(f"sqlite:///{tmp_path}/unmask.db", tmp_path, **options) as world:
        reading, growing = (
            f"/unmask.v1.{name}"
            for name in ("CatalogService/ListPolicies", "CatalogService/RegisterVerifier")
        )
        token = signed(issuer, scope="unmask:read")
        assert (await outcome(world, reading, bearing(token)))[0] is grpc.StatusCode.OK
        assert await outcome(world, growing, bearing(token)) == (
            grpc.StatusCode.PERMISSION_DENIED,
            "SCOPE_MISSING",
        )
        expired = signed(issuer, exp=time.time() - 100)
        assert await outcome(world, reading, bearing(expired)) == (
            grpc.StatusCode.UNAUTHENTICATED,
            "CREDENTIALS_EXPIRED",
        )
