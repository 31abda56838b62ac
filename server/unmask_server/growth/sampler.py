"""Rollouts from the engine, as finished paths."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from unmask_server.catalog import Catalog
from unmask_server.catalog.types import Policy
from unmask_server.engines import observed
from unmask_server.engines.base import SampleRequest
from unmask_server.engines.pool import EnginePool
from unmask_server.growth.outcomes import LENGTH, STOP
from unmask_server.growth.recorder import FINISH_CODES, Finished, seed_of


@dataclass(frozen=True, slots=True)
class Wanted:
    """A rollout to sample: continue a prompt and the forced tokens."""

    uid: bytes
    prompt: tuple[int, ...]
    forced: tuple[int, ...]


class _Pace:
    """Tokens of a policy, and the time in which any were being sampled."""

    def __init__(self) -> None:
        self._tokens = 0
        self._seconds = 0.0
        self._calls = 0
        self._since = 0.0

    def begin(self) -> None:
        if self._calls == 0:
            self._since = time.monotonic()
        self._calls += 1

    def add(self, tokens: int) -> None:
        self._tokens += tokens

    def end(self) -> None:
        self._calls -= 1
        if self._calls == 0:
            self._seconds += time.monotonic() - self._since

    @property
    def tokens_per_second(self) -> float | None:
        running = time.monotonic() - self._since if self._calls else 0.0
        seconds = self._seconds + running
        return self._tokens / seconds if self._tokens and seconds > 0.0 else None


class Sampler:
    """Samples rollouts of a policy."""

    def __init__(self, catalog: Catalog, engines: EnginePool) -> None:
        self._catalog = catalog
        self._engines = engines
        self.rollouts = 0
        """Rollouts sampled since the start."""
        self.tokens = 0
        """Tokens sampled since the start."""
        self._paces: defaultdict[str, _Pace] = defaultdict(_Pace)

    def tokens_per_second(self, policy_id: str) -> float | None:
        """Tokens of a policy sampled a second while it was; None if it was not yet."""
        return self._paces[policy_id].tokens_per_second

    async def sample(
        self, policy: Policy, wanted: Sequence[Wanted]
    ) -> AsyncGenerator[tuple[int, Finished, int], None]:
        """Yield (index, rollout, tokens sampled for it) as rollouts finish.

        A rollout whose forced tokens already end it costs no call to the engine.
        """
        requests: list[SampleRequest] = []
        indices: list[int] = []
        for i, want in enumerate(wanted):
            if (finish := _ended(policy, want.forced)) is not None:
                yield i, Finished(want.uid, want.forced, len(want.forced), finish), 0
                continue
            room = policy.max_new_tokens - len(want.forced)
            requests.append(SampleRequest(want.prompt, want.forced, room, seed_of(want.uid)))
            indices.append(i)
        if not requests:
            return
        with self._engines.hold(policy.model):
            engine = await self._engines.get(policy.model, self._catalog.usable_vocab(policy.model))
            stop_ids = frozenset(policy.stop_ids)
            samples = observed.sample(engine, requests, policy.sampling, stop_ids)
            pace = self._paces[policy.id]
            pace.begin()
            try:
                async with aclosing(samples):
                    async for sample in samples:
                        want = wanted[indices[sample.index]]
                        self.rollouts += 1
                        self.tokens += len(sample.tokens)
                        pace.add(len(sample.tokens))
                        yield (
                            indices[sample.index],
                            Finished(
                                want.uid,
                                want.forced + sample.tokens,
                                len(want.forced),
                                FINISH_CODES[sample.finish],
                            ),
                            len(sample.tokens),
                        )
            finally:
                pace.end()


def _ended(policy: Policy, forced: tuple[int, ...]) -> int | None:
    """How forced tokens alone end a rollout, if they do."""
    if forced and forced[-1] in policy.stop_ids:
        return STOP
    return LENGTH if len(forced) >= policy.max_new_tokens else None
