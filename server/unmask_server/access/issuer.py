"""The keys of an OpenID Connect issuer, fetched from it over HTTPS and from nowhere else."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
import urllib.request
from collections.abc import Mapping
from contextvars import Context
from http.client import HTTPException
from typing import Any
from urllib.error import URLError
from urllib.parse import urlsplit

import structlog

from unmask_server.access.errors import IssuerError

log = structlog.get_logger(__name__)

Jwk = Mapping[str, Any]

FETCH_SECONDS = 5.0
"""What a step of a fetch may take: to connect, to be answered, to read some more."""
WAIT_SECONDS = 5.0
"""How long a call waits for keys without which its token cannot be verified."""
PATIENCE_SECONDS = 1.0
"""How long after it began calls wait for a fetch of keys that they have, but old ones."""
MAX_BYTES = 2**20
"""Of an answer."""
FRESH_SECONDS = 600.0
"""After which the keys are fetched anew: so soon a key that was withdrawn counts no more. From half
of it on that is done while calls go on with the keys that there are."""
STALE_SECONDS = 86_400.0
"""So long the keys are believed while the issuer does not answer."""
PAUSE_SECONDS = 10.0
"""Between two fetches at least: tokens with made-up key ids cannot make the server call more."""


class IssuerKeys:
    """The signing keys of an issuer, by their ids."""

    def __init__(self, issuer: str, jwks_url: str | None, ca: str | None) -> None:
        """Nothing is fetched yet.

        Args:
            issuer: its https address.
            jwks_url: where its keys are; None: where its configuration says, at the same host.
            ca: a file of authorities that vouch for it; None: the system's.

        Raises:
            ValueError: the file cannot be read.

        """
        self._issuer = issuer.rstrip("/")
        self._jwks_url = jwks_url
        try:
            self._tls = ssl.create_default_context(cafile=ca)
        except OSError as error:
            raise ValueError(f"oidc_ca: {ca} cannot be read: {error}") from None
        self._tls.minimum_version = ssl.TLSVersion.TLSv1_2
        self._keys: list[Jwk] = []
        self._fetched = -float("inf")
        self._tried = -float("inf")
        self._fetching: asyncio.Task[None] | None = None
        self._fails = False

    async def find(self, kid: str | None) -> Jwk | None:
        """The key of an id; without an id the only key that there is. None: there is none.

        Raises:
            IssuerError: the issuer does not answer in time.

        """
        age = time.monotonic() - self._fetched
        if self._known(kid) is None or age > STALE_SECONDS:
            await self._refreshed(WAIT_SECONDS)
        elif age > FRESH_SECONDS:
            await self._refreshed(PATIENCE_SECONDS)
        elif age > FRESH_SECONDS / 2.0:
            self._refresh()
        key = self._known(kid)
        is_stale = time.monotonic() - self._fetched > STALE_SECONDS
        if is_stale or (key is None and (self._fails or self._fetching)):
            raise IssuerError("the issuer's keys cannot be fetched; the server's log says why")
        return key

    def _known(self, kid: str | None) -> Jwk | None:
        if kid is None:
            return self._keys[0] if len(self._keys) == 1 else None
        return next((key for key in self._keys if key.get("kid") == kid), None)

    async def _refreshed(self, most: float) -> None:
        """Wait for a fetch, until `most` seconds after it began: not even all of them can stall."""
        self._refresh()
        if self._fetching is not None:
            left = self._tried + most - time.monotonic()
            await asyncio.wait([self._fetching], timeout=max(0.0, left))

    def _refresh(self) -> None:
        """Begin a fetch, unless one runs or has just run."""
        if self._fetching is None and time.monotonic() - self._tried >= PAUSE_SECONDS:
            self._tried = time.monotonic()
            # It is no part of the call that came first.
            self._fetching = asyncio.create_task(self._fetch_and_keep(), context=Context())

    async def _fetch_and_keep(self) -> None:
        begun = time.monotonic()
        self._fails = True
        try:
            self._keys = await asyncio.to_thread(self._fetch_keys)
            self._fetched, self._fails = begun, False
        except IssuerError as error:
            log.warning("an issuer's keys cannot be fetched", reason=str(error))
        except Exception:
            log.exception("an issuer's keys cannot be fetched")
        finally:
            self._fetching = None

    def _fetch_keys(self) -> list[Jwk]:
        keys = self._fetch(self._jwks_url or self._discover()).get("keys")
        if not isinstance(keys, list):
            raise IssuerError("the issuer answers with no set of keys")
        return [key for key in keys if isinstance(key, dict) and key.get("use", "sig") == "sig"]

    def _discover(self) -> str:
        found = self._fetch(f"{self._issuer}/.well-known/openid-configuration")
        if str(found.get("issuer", "")).rstrip("/") != self._issuer:
            raise IssuerError(f"what answers at {self._issuer} calls itself {found.get('issuer')}")
        url = str(found.get("jwks_uri", ""))
        if _origin(url) != _origin(self._issuer):
            raise IssuerError(
                f"{self._issuer} has its keys at another host, {url[:200]}; if that is right, set "
                "oidc_jwks_url to it"
            )
        return url

    def _fetch(self, url: str) -> dict[str, Any]:
        opener = urllib.request.build_opener(
            urllib.request.HTTPSHandler(context=self._tls), _NoRedirects()
        )
        try:
            with opener.open(url, timeout=FETCH_SECONDS) as answer:
                body = answer.read(MAX_BYTES + 1)
            found = json.loads(body) if len(body) <= MAX_BYTES else None
        except (URLError, HTTPException, OSError, ValueError, RecursionError) as error:
            raise IssuerError(f"{url}: {error}") from None
        if not isinstance(found, dict):
            raise IssuerError(f"{url} answers with no object, or more than {MAX_BYTES} bytes")
        return found


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        """A redirect is an answer like any other that is not 200: an error."""
        return


def _origin(url: str) -> tuple[str, str | None, int | None]:
    try:
        parts = urlsplit(url)
        return parts.scheme, parts.hostname, parts.port or 443
    except ValueError:
        return "", None, None
