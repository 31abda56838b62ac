"""One SGLang server over HTTP: token ids in, token ids and log-probabilities out.

Nothing is retried here; whoever calls decides where a lost request goes next.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import orjson
import structlog

from unmask_server.telemetry import metrics, tracing

log = structlog.get_logger(__name__)

CONNECT_SECONDS = 5.0
"""How long a connection may take to open."""
PROBE_SECONDS = 10.0
"""How long a question about the server itself may take: it answers those between batches."""

_JSON = {"content-type": "application/json"}
Json = dict[str, Any]


class GoneError(Exception):
    """The server did not answer: it is down, restarting, overloaded, or cut the connection."""


class RefusedError(Exception):
    """The server answered that it will not do this (a 4xx)."""


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What a server says of itself. Fields that a router or an older server lacks are None."""

    model_path: str
    served_name: str
    tokenizer_path: str
    weight_version: str
    version: str | None
    """Of SGLang."""
    max_input: int | None
    """Tokens of the longest input it takes."""
    max_running: int | None
    """Requests that it runs at once."""
    has_radix_cache: bool


class SglangClient:
    """Requests to one server. All calls may be made concurrently from one event loop."""

    def __init__(self, url: str, session: aiohttp.ClientSession, *, timeout: float) -> None:
        """Talk to the server at `url` (http://host:port).

        Args:
            url: its address; what follows the port is kept as a prefix of every path.
            session: shared between the servers; it is not closed here.
            timeout: seconds that a generation may take, its time in the server's queue included.

        """
        self._base = url.rstrip("/")
        # As it may be shown: without a user and a password.
        parts = urlsplit(self._base)
        self.url = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        self._session = session
        self._timeout = aiohttp.ClientTimeout(total=timeout, sock_connect=CONNECT_SECONDS)
        self._probe = aiohttp.ClientTimeout(total=PROBE_SECONDS, sock_connect=CONNECT_SECONDS)
        self._aborting: set[asyncio.Task[None]] = set()

    async def info(self) -> ServerInfo:
        """What the server says of itself.

        Raises:
            GoneError: it does not answer (it answers 503 while it starts).
            RefusedError: what answers there is no SGLang server.

        """
        model = await self._get("/model_info", "/get_model_info")
        if model is None or "model_path" not in model:
            raise RefusedError(f"{self.url} is no SGLang server: it has no /model_info")
        server = await self._get("/server_info", "/get_server_info") or {}
        states = server.get("internal_states") or [{}]
        state = states[0] if isinstance(states, list) and states else {}
        return ServerInfo(
            model_path=str(model["model_path"]),
            served_name=str(model.get("served_model_name") or model["model_path"]),
            tokenizer_path=str(model.get("tokenizer_path") or ""),
            weight_version=str(model.get("weight_version") or "default"),
            version=server.get("version"),
            max_input=server.get("max_req_input_len"),
            max_running=state.get("effective_max_running_requests_per_dp")
            or server.get("max_running_requests"),
            has_radix_cache=not server.get("disable_radix_cache", False),
        )

    async def weight_version(self) -> str:
        """The version of the weights that it answers with now. Raises: as `info`."""
        model = await self._get("/model_info", "/get_model_info")
        if model is None:
            raise RefusedError(f"{self.url} is no SGLang server: it has no /model_info")
        return str(model.get("weight_version") or "default")

    async def weights(self, name: str, rows: int) -> list[Any] | None:
        """The first rows of a parameter; None where the server does not tell."""
        try:
            body = await self._post(
                "/get_weights_by_name", {"name": name, "truncate_size": rows}, self._probe
            )
            found = orjson.loads(body)
        except (GoneError, RefusedError, TimeoutError, orjson.JSONDecodeError):
            return None
        return found if isinstance(found, list) else None

    async def tokenize(self, text: str) -> list[int] | None:
        """The ids of a text by the server's tokenizer; None where the server does not tell."""
        payload = {"prompt": text, "add_special_tokens": False}
        try:
            found = orjson.loads(await self._post("/tokenize", payload, self._probe))
        except (GoneError, RefusedError, TimeoutError, orjson.JSONDecodeError):
            return None
        tokens = found.get("tokens") if isinstance(found, dict) else None
        return tokens if isinstance(tokens, list) else None

    async def is_healthy(self) -> bool:
        """Whether it takes requests."""
        try:
            async with self._session.get(
                f"{self._base}/health", timeout=self._probe, allow_redirects=False
            ) as response:
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False

    async def generate(self, inputs: Sequence[Sequence[int]], fields: Json) -> list[Json]:
        """Run inputs with the same settings; one answer each, in order.

        Every try has request ids of its own. Whoever is cancelled, or waits in vain, has its
        requests stopped on the server too.

        Args:
            inputs: token ids; at least one input, none empty.
            fields: the other fields of `/generate`, the same for all inputs.

        Raises:
            GoneError: no answer; a try with other request ids is harmless.
            RefusedError: the server will never do it.

        """
        rids = [uuid.uuid4().hex for _ in inputs]
        payload = {**fields, "input_ids": [list(ids) for ids in inputs], "rid": rids}
        begun = time.perf_counter()
        try:
            answers = await self._generate(payload)
        except asyncio.CancelledError:
            self._abort_soon(rids)
            raise
        except TimeoutError:
            self._abort_soon(rids)
            metrics.SGLANG_GONE.inc()
            raise GoneError(f"{self.url} did not answer in time") from None
        except GoneError:
            metrics.SGLANG_GONE.inc()
            raise
        except RefusedError:
            metrics.SGLANG_REFUSED.inc()
            raise
        metrics.SGLANG_OK.inc()
        metrics.SGLANG_SECONDS.observe(time.perf_counter() - begun)
        if isinstance(answers, dict):
            answers = [answers]
        if not isinstance(answers, list) or len(answers) != len(inputs):
            raise GoneError(f"{self.url} gave {len(answers)} answers to {len(inputs)} inputs")
        return answers

    async def _generate(self, payload: Json) -> Any:
        body = await self._post("/generate", payload, self._timeout)
        try:
            return orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise GoneError(f"{self.url} answered with no JSON: {error}") from None

    async def close(self) -> None:
        """Wait for what is being stopped."""
        await asyncio.gather(*self._aborting, return_exceptions=True)

    def _abort_soon(self, rids: Sequence[str]) -> None:
        task = asyncio.ensure_future(self._abort(rids))
        self._aborting.add(task)
        task.add_done_callback(self._aborting.discard)

    async def _abort(self, rids: Sequence[str]) -> None:
        for rid in rids:
            try:
                await self._post("/abort_request", {"rid": rid}, self._probe)
            except RefusedError:
                # A router in front may not know it: what was asked for goes on, for nothing.
                log.debug("requests cannot be stopped there", url=self.url)
                return
            except (GoneError, TimeoutError):
                return

    async def _get(self, *paths: str) -> Json | None:
        """The first of the paths that is known there; None if none is."""
        for path in paths:
            try:
                async with self._session.get(
                    self._base + path, timeout=self._probe, allow_redirects=False
                ) as response:
                    if response.status == 404:
                        continue
                    body = await _read(response, self.url)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                raise GoneError(f"{self.url} does not answer: {_reason(error)}") from None
            try:
                found = orjson.loads(body)
            except orjson.JSONDecodeError:
                continue
            if isinstance(found, dict):
                return found
        return None

    async def _post(self, path: str, payload: Json, timeout: aiohttp.ClientTimeout) -> bytes:
        try:
            headers = _JSON | tracing.headers()
            async with self._session.post(
                self._base + path,
                data=orjson.dumps(payload),
                headers=headers,
                timeout=timeout,
                allow_redirects=False,
            ) as response:
                return await _read(response, self.url)
        except TimeoutError:
            raise
        except (aiohttp.ClientError, OSError) as error:
            raise GoneError(f"{self.url} does not answer: {_reason(error)}") from None


async def _read(response: aiohttp.ClientResponse, url: str) -> bytes:
    body = await response.read()
    if response.status == 200:
        return body
    if 300 <= response.status < 400:
        # Whoever answers must not choose which host is called next.
        raise RefusedError(f"{url} sends callers elsewhere ({response.status}); give that address")
    said = body[:500].decode(errors="replace")
    # 408, 425 and 429 mean "not now", like every 5xx.
    if 400 <= response.status < 500 and response.status not in (408, 425, 429):
        raise RefusedError(f"{url} refuses this ({response.status}): {said}")
    raise GoneError(f"{url} answers {response.status}: {said}")


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__
