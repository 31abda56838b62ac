"""A stand-in for an SGLang server, for what a real one does not do when a test wants it.

It records what it is sent, and can answer late, drop connections, abort, be down, change its
weights or repeat itself badly. What a real server does is tested on a real one.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

VOCABULARY = 8
EOS = 0
TOKENS = 4
"""Sampled by every rollout that has room, the end token included."""

Json = dict[str, Any]


class StandIn:
    """One server."""

    def __init__(self, columns: int = VOCABULARY) -> None:
        self.sent: list[Json] = []
        """Payloads of `/generate`, in order."""
        self.traceparents: list[str] = []
        """Of the same, where they had one."""
        self.aborted: list[str] = []
        """Request ids of `/abort_request`."""
        self.knows_abort = True
        self.is_starting = False
        self.drops = 0
        """So many next requests lose their connection."""
        self.aborts = 0
        """So many next rollouts are aborted after one token."""
        self.hold: asyncio.Event | None = None
        """Answers wait for it."""
        self.is_deaf_to_health = False
        self.weight_version = "default"
        self.stamp: str | None = None
        """Of answers, where it is not `weight_version`."""
        self.warm_shift = 0.0
        """Nats by which a scoring from the middle on is off."""
        self.version = "0.5.20"
        self.has_radix_cache = True
        self.served_name = "stand-in"
        self.columns = columns
        self.at_once = 0
        self.most_at_once = 0
        self.url = ""

    @asynccontextmanager
    async def running(self, port: int = 0) -> AsyncIterator[StandIn]:
        """Listen on a port; 0: on a free one."""
        app = web.Application()
        app.router.add_get("/health", self._health)
        app.router.add_get("/model_info", self._model_info)
        app.router.add_get("/server_info", self._server_info)
        app.router.add_post("/generate", self._generate)
        app.router.add_post("/abort_request", self._abort)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        host, port = runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        try:
            yield self
        finally:
            if self.hold is not None:
                self.hold.set()
            await runner.cleanup()

    @property
    def rids(self) -> list[str]:
        """Every request id that was ever sent."""
        return [rid for payload in self.sent for rid in payload["rid"]]

    async def _health(self, request: web.Request) -> web.Response:
        if self.is_deaf_to_health:
            await asyncio.Event().wait()
        return web.Response(status=503 if self.is_starting else 200)

    async def _model_info(self, request: web.Request) -> web.Response:
        if self.is_starting:
            return web.Response(status=503)
        return web.json_response(
            {
                "model_path": "/models/stand-in",
                "served_model_name": self.served_name,
                "tokenizer_path": "/models/stand-in",
                "weight_version": self.weight_version,
                "preferred_sampling_params": {"temperature": 0.1},
            }
        )

    async def _server_info(self, request: web.Request) -> web.Response:
        return web.json_response(
            {
                "version": self.version,
                "max_req_input_len": 4000,
                "disable_radix_cache": not self.has_radix_cache,
            }
        )

    async def _abort(self, request: web.Request) -> web.Response:
        if not self.knows_abort:
            return web.Response(status=404)
        self.aborted.append((await request.json())["rid"])
        return web.Response()

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        payload: Json = await request.json()
        self.sent.append(payload)
        if "traceparent" in request.headers:
            self.traceparents.append(request.headers["traceparent"])
        if self.is_starting:
            return web.Response(status=503)
        if self.drops:
            self.drops -= 1
            assert request.transport is not None
            request.transport.close()
            return web.Response()
        ids = payload.get("token_ids_logprob")
        if ids and max(ids) >= self.columns:
            return web.Response(status=400, text=f"valid range is [0, {self.columns}).")
        self.at_once += len(payload["input_ids"])
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            if self.hold is not None:
                await self.hold.wait()
            return web.json_response(
                [
                    self._answer(payload, given, rid)
                    for given, rid in zip(payload["input_ids"], payload["rid"], strict=True)
                ]
            )
        finally:
            self.at_once -= len(payload["input_ids"])

    def _answer(self, payload: Json, given: list[int], rid: str) -> Json:
        params = payload["sampling_params"]
        room = params["max_new_tokens"]
        output = [3] * min(room, TOKENS - 1)
        kind = "length"
        if self.aborts and room > 1:
            self.aborts -= 1
            output, kind = [3], "abort"
        elif room >= TOKENS:
            output, kind = [*output, EOS], "stop"
        meta: Json = {
            "id": rid,
            "finish_reason": {"type": kind},
            "weight_version": self.stamp or self.weight_version,
            "cached_tokens": 0,
        }
        if payload.get("return_logprob"):
            start = payload["logprob_start_len"]
            shift = self.warm_shift if start else 0.0
            top = payload["top_logprobs_num"]
            entries = [self._top(given[i - 1], shift, top) for i in range(start + 1, len(given))]
            meta["input_top_logprobs"] = [None, *entries]
            values = [self._logprob(given[i - 1], given[i]) for i in range(start + 1, len(given))]
            meta["input_token_logprobs"] = [
                [None, given[start] if start < len(given) else 0, None],
                *([v, i, None] for v, i in zip(values, given[start + 1 :], strict=True)),
            ]
            temperature = params["temperature"]
            meta["output_top_logprobs"] = [self._top(given[-1], 0.0, top, temperature)]
        return {"output_ids": output, "meta_info": meta}

    def _logprob(self, before: int, token: int, temperature: float = 1.0) -> float:
        """A softmax over the vocabulary that depends on the token before."""
        logits = [math.sin(1 + before * 3 + i) / temperature for i in range(self.columns)]
        return logits[token] - math.log(sum(map(math.exp, logits)))

    def _top(
        self, before: int, shift: float, top: int, temperature: float = 1.0
    ) -> list[list[Any]]:
        rows = [
            [self._logprob(before, i, temperature) + shift, i, None] for i in range(self.columns)
        ]
        return sorted(rows, key=lambda row: -row[0])[:top]
