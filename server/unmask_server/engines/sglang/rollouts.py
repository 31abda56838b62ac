"""Rollouts from SGLang: many requests in flight, in an order that its prefix cache likes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from unmask_server.engines.base import (
    EngineError,
    FinishReason,
    ModelInfo,
    Sample,
    SampleRequest,
    Sampling,
)
from unmask_server.engines.sglang import order
from unmask_server.engines.sglang.payloads import (
    Generated,
    read_generated,
    sampling_fields,
    sampling_params,
)
from unmask_server.engines.sglang.replicas import Replicas
from unmask_server.engines.sglang.scoring import affinity
from unmask_server.telemetry import metrics

ABORTS = 20
"""How often a rollout that somebody else aborts is taken up again."""


@dataclass(slots=True)
class RolloutStats:
    """What was asked for since the start."""

    requests: int = 0
    """Rollouts asked for, repetitions included."""
    input_tokens: int = 0
    cached_tokens: int = 0
    """Input tokens that the servers' prefix caches had."""
    warmed_tokens: int = 0
    """Input tokens of calls that only filled the cache."""
    repeated: int = 0
    """Rollouts that were asked for again: aborted, or with an id that is no token."""


class Rollouts:
    """Samples from servers of one model."""

    def __init__(
        self,
        replicas: Replicas,
        info: ModelInfo,
        *,
        columns: int,
        in_flight: int,
        bans_padding: bool,
    ) -> None:
        """Sample through `replicas`.

        Args:
            replicas: the servers.
            info: the model; ids from `info.vocab_size` to `columns` are padding.
            columns: of the model's logits.
            in_flight: requests sent and not answered, at most, over all calls.
            bans_padding: whether padding has mass, so that it must be forbidden in every request.

        """
        self._replicas = replicas
        self._info = info
        self._banned = tuple(range(info.vocab_size, columns)) if bans_padding else ()
        self._slots = asyncio.Semaphore(in_flight)
        self.stats = RolloutStats()

    async def sample(
        self, requests: Sequence[SampleRequest], sampling: Sampling, stop_ids: frozenset[int]
    ) -> AsyncGenerator[Sample, None]:
        """See `Engine.sample`; the requests have been checked."""
        done: asyncio.Queue[Sample] = asyncio.Queue()
        inputs = [(*request.prompt, *request.forced) for request in requests]

        async def family(of: order.Family) -> None:
            if of.prefix:
                async with self._slots:
                    await self._warm(of.prefix, sampling)
            async with asyncio.TaskGroup() as inner:
                for index in of.members:
                    inner.create_task(one(index))
                for below in of.families:
                    inner.create_task(family(below))

        async def one(index: int) -> None:
            async with self._slots:
                done.put_nowait(await self._one(index, requests[index], sampling, stop_ids))

        async def everything() -> None:
            async with asyncio.TaskGroup() as group:
                for top in order.plan(inputs):
                    group.create_task(family(top))

        task = asyncio.create_task(everything())
        try:
            for _ in requests:
                getting = asyncio.ensure_future(done.get())
                await asyncio.wait([task, getting], return_when=asyncio.FIRST_COMPLETED)
                if not getting.done() and done.empty():
                    # The work has ended without it.
                    getting.cancel()
                    await task
                    raise EngineError("SGLang's work ended early")
                yield await getting
            await task
        except* EngineError as errors:
            raise _first(errors) from None
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _warm(self, prefix: tuple[int, ...], sampling: Sampling) -> None:
        """Have a prefix computed, so that those who share it find it."""
        fields = sampling_fields(sampling_params(sampling, 0, ()))
        (answer,) = await self._replicas.generate([prefix], fields, affinity=affinity(prefix))
        self.stats.warmed_tokens += len(prefix) - read_generated(answer).cached

    async def _one(
        self, index: int, request: SampleRequest, sampling: Sampling, stop_ids: frozenset[int]
    ) -> Sample:
        """One rollout, whatever it takes."""
        given = (*request.prompt, *request.forced)
        wanted = request.max_new_tokens
        tokens: tuple[int, ...] = ()
        aborts = 0
        while True:
            # One token more than wanted, where there is room: SGLang calls a generation whose last
            # token is an end token cut off when that token was also the last one allowed.
            room = self._info.max_context - len(given) - len(tokens)
            ask = min(wanted - len(tokens) + 1, room)
            got = await self._generate((*given, *tokens), sampling, ask, stop_ids)
            real = self._real(got.tokens)
            tokens += real
            if got.aborted or len(real) < len(got.tokens):
                # Somebody cut it short, or it drew an id that is no token. What it has is a fair
                # sample, so it goes on from there: to begin anew would favour short generations.
                aborts += 1
                self.stats.repeated += 1
                if aborts > ABORTS:
                    raise EngineError(f"SGLang aborted a rollout {aborts} times")
            elif got.stopped and len(tokens) <= wanted and tokens and tokens[-1] in stop_ids:
                return Sample(index, tokens, FinishReason.STOP)
            if len(tokens) >= wanted:
                return Sample(index, tokens[:wanted], FinishReason.LENGTH)
            if not got.tokens and not got.aborted:
                raise EngineError("SGLang sampled nothing")
            # It stopped at an end token of the model that is none of the policy: go on from there.

    def _real(self, tokens: tuple[int, ...]) -> tuple[int, ...]:
        """What comes before the first id that is no token."""
        for i, token in enumerate(tokens):
            if token >= self._info.vocab_size:
                return tokens[:i]
        return tokens

    async def _generate(
        self, given: tuple[int, ...], sampling: Sampling, ask: int, stop_ids: frozenset[int]
    ) -> Generated:
        params = sampling_params(sampling, ask, sorted(stop_ids), banned=self._banned)
        (answer,) = await self._replicas.generate(
            [given], sampling_fields(params), affinity=affinity(given)
        )
        got = read_generated(answer)
        self.stats.requests += 1
        self.stats.input_tokens += len(given)
        self.stats.cached_tokens += got.cached
        metrics.SGLANG_PROMPT_TOKENS.inc(len(given))
        metrics.SGLANG_CACHED_TOKENS.inc(got.cached)
        return got


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error of a group: they all say that no server could do it."""
    found: BaseException = errors
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found
