"""Settings of access: who may call, and what calls may name."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode

ScopeName = Literal["read", "grow", "admin"]
SCOPE_NAMES: dict[str, ScopeName] = {
    "unmask:read": "read",
    "unmask:grow": "grow",
    "unmask:admin": "admin",
}


class AccessSettings(BaseSettings):
    """What a server can be told about access."""

    auth: Annotated[list[Literal["none", "tokens", "oidc"]] | None, NoDecode] = Field(
        default=None,
        description="How callers prove who they are: none, tokens (`unmask-server token`), oidc; "
        "with commas between. Unset: none, and only this machine can call.",
    )
    insecure: bool = Field(
        default=False,
        description="Serve other machines without TLS: for networks, proxies and meshes that "
        "see to it themselves.",
    )
    tls_cert: str | None = Field(
        default=None, description="Certificate (chain) in PEM; looked at anew when it changes."
    )
    tls_key: str | None = Field(default=None, description="Its private key in PEM.")
    tls_client_ca: str | None = Field(
        default=None,
        description="Only clients with a certificate of these authorities may connect (mTLS).",
    )
    tls_client_scope: ScopeName = Field(
        default="read",
        description="What whoever has such a certificate may do where `auth` asks for no more: "
        "read, grow or admin.",
    )
    oidc_issuer: str | None = Field(
        default=None, description="Issuer of tokens, as their `iss` says it: https://…"
    )
    oidc_audience: str | None = Field(
        default=None, description="What their `aud` must hold: this server's name there."
    )
    oidc_jwks_url: str | None = Field(
        default=None,
        description="Where its keys are, if not where the issuer itself says: https://…",
    )
    oidc_ca: str | None = Field(
        default=None, description="Authorities that vouch for the issuer; default: the system's."
    )
    oidc_principal_claim: str = Field(default="sub", description="The claim that names who calls.")
    oidc_scope_claim: str = Field(
        default="scope",
        description="The claim with scopes, as a text or a list; with dots: a claim within one.",
    )
    oidc_scopes: Annotated[dict[str, ScopeName], NoDecode] = Field(
        default=SCOPE_NAMES, description="What its values allow: VALUE=SCOPE, with commas between."
    )
    oidc_leeway_seconds: float = Field(
        default=30.0, ge=0, le=300, description="By how much the issuer's clock may differ."
    )
    model_roots: Annotated[list[str] | None, NoDecode] = Field(
        default=None,
        description="Directories below which models may be registered; may be given several times "
        "(in the environment: with commas between). Unset: any, where only this machine can call "
        "and without auth, else none.",
    )
    endpoint_hosts: Annotated[list[str] | None, NoDecode] = Field(
        default=None,
        description="Hosts at which SGLang servers may be registered: HOST, HOST:PORT, *.DOMAIN, "
        "networks (10.0.0.0/8) or * (any but this machine); likewise.",
    )

    @field_validator("auth", "model_roots", "endpoint_hosts", mode="before")
    @classmethod
    def _split_list(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return [part.strip() for part in value.split(",") if part.strip()]

    @field_validator("oidc_scopes", mode="before")
    @classmethod
    def _split_map(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        pairs = [part.partition("=") for part in value.split(",") if part.strip()]
        return {name.strip(): scope.strip() for name, _, scope in pairs}
