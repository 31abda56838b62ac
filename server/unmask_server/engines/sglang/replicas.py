"""Several servers of one model: who gets which request, and what happens when one fails."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from contextvars import Context
from dataclasses import dataclass, field

import structlog

from unmask_server.engines.base import EngineError, ModelChangedError
from unmask_server.engines.sglang.client import GoneError, Json, RefusedError, SglangClient

log = structlog.get_logger(__name__)

TRIES = 6
"""How often one request is sent before it is given up: it may be what kills the servers."""
_FIRST_PROBE, _LAST_PROBE = 0.2, 5.0
"""Seconds between two looks at a server that is down: they double."""


@dataclass(slots=True)
class Replica:
    """One server and how it is doing."""

    client: SglangClient
    weight_version: str
    """What was registered."""
    is_up: bool = True
    in_flight: int = 0
    """Inputs sent and not answered."""
    failures: int = 0
    """How often it was found gone."""
    watch: asyncio.Task[None] | None = field(default=None, repr=False)


class Replicas:
    """Sends requests to the servers of a model.

    Requests with the same affinity go to the same server, whose prefix cache then has what they
    share, unless it has much more to do than another one. A server that does not answer is left
    out until it does; what it had been asked goes to another one, or waits for it to come back.
    """

    def __init__(self, replicas: Sequence[Replica], *, patience: float) -> None:
        """Serve from `replicas` (at least one).

        Args:
            replicas: the servers.
            patience: seconds to wait for a server when all are down.

        """
        self._replicas = list(replicas)
        self._patience = patience
        self._changed = asyncio.Event()
        self._confirming: dict[str, asyncio.Task[None]] = {}
        self.retries = 0
        """Requests that were sent again, since the start."""

    @property
    def up(self) -> int:
        """How many answer."""
        return sum(replica.is_up for replica in self._replicas)

    @property
    def all(self) -> Sequence[Replica]:
        """All of them."""
        return self._replicas

    async def generate(
        self, inputs: Sequence[Sequence[int]], fields: Json, *, affinity: bytes
    ) -> list[Json]:
        """Answers to inputs with the same settings, from one server.

        Raises:
            EngineError: no server answers within the patience, or each died of it.
            ModelChangedError: it has other weights by now; nothing of it may be kept.

        """
        lost: set[str] = set()
        why = ""
        for _ in range(TRIES):
            replica = await self._choose(affinity, lost, why)
            replica.in_flight += len(inputs)
            try:
                answers = await replica.client.generate(inputs, fields)
                await self._confirm(replica, answers)
            except GoneError as error:
                why = str(error)
                lost.add(replica.client.url)
                self.retries += 1
                self._down(replica, why)
            except RefusedError as error:
                raise EngineError(str(error)) from None
            else:
                return answers
            finally:
                replica.in_flight -= len(inputs)
        raise EngineError(f"a request was given up after {TRIES} tries: {why}")

    async def close(self) -> None:
        """Stop watching."""
        watches = [r.watch for r in self._replicas if r.watch is not None]
        for watch in watches:
            watch.cancel()
        await asyncio.gather(*watches, return_exceptions=True)
        for replica in self._replicas:
            await replica.client.close()

    async def _choose(self, affinity: bytes, lost: set[str], why: str) -> Replica:
        """The server for a request; waits while none is up."""
        deadline = asyncio.get_running_loop().time() + self._patience
        while not (there := [r for r in self._replicas if r.is_up]):
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                raise EngineError(f"no SGLang server of this model answers: {why or 'all down'}")
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), left)
            except TimeoutError:
                continue
        # One that just failed us may be up again by now, but another one is the better bet.
        fresh = [r for r in there if r.client.url not in lost] or there
        favourite = max(fresh, key=lambda r: _affinity(affinity, r.client.url))
        idlest = min(fresh, key=lambda r: r.in_flight)
        crowded = favourite.in_flight > 2 * idlest.in_flight + _SLACK
        return idlest if crowded else favourite

    async def _confirm(self, replica: Replica, answers: Sequence[Json]) -> None:
        """Make sure that answers were given under the weights that were registered.

        An answer carries the version at its end, or a newer server's every version it saw; and the
        server is asked once more after the answer came, since weights may be newer than their name.
        """
        expected = replica.weight_version
        for answer in answers:
            meta = answer.get("meta_info") or {}
            seen = {str(span.get("version")) for span in meta.get("weight_versions") or ()}
            seen.add(str(meta.get("weight_version", expected)))
            if seen != {expected}:
                raise _changed(replica, next(iter(seen - {expected})))
        url = replica.client.url
        # A look that began after the answer came serves all who came before it.
        running = self._confirming.get(url)
        if running is not None:
            await asyncio.wait([running])
        task = self._confirming.get(url)
        if task is None or task.done():
            task = asyncio.create_task(self._look(replica))
            self._confirming[url] = task
        await asyncio.shield(task)

    async def _look(self, replica: Replica) -> None:
        now = await replica.client.weight_version()
        if now != replica.weight_version:
            raise _changed(replica, now)

    def _down(self, replica: Replica, why: str) -> None:
        if not replica.is_up:
            return
        replica.is_up = False
        replica.failures += 1
        log.warning("an SGLang server is left out", url=replica.client.url, reason=why)
        # For all calls, whichever found it gone.
        replica.watch = asyncio.create_task(self._watch(replica), context=Context())

    async def _watch(self, replica: Replica) -> None:
        pause = _FIRST_PROBE
        while not await replica.client.is_healthy():
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LAST_PROBE)
        replica.is_up = True
        replica.watch = None
        self._changed.set()
        log.info("an SGLang server is back", url=replica.client.url)


_SLACK = 64
"""Requests that a server may have beyond twice the idlest one's before others are preferred."""


def _affinity(key: bytes, url: str) -> bytes:
    """Rendezvous hashing (Thaler, Ravishankar 1998): a server less moves only its own share."""
    return hashlib.blake2b(key + url.encode(), digest_size=8).digest()


def _changed(replica: Replica, now: str) -> ModelChangedError:
    return ModelChangedError(
        f"{replica.client.url} now has weights of version {now!r}; what was registered is version "
        f"{replica.weight_version!r}. Nothing of it was kept. Register the new version"
    )
