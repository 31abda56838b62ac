"""Calls of engines, measured, whichever engine it is."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager

from unmask_server.engines.base import (
    BadRequestError,
    Engine,
    PositionScores,
    Sample,
    SampleRequest,
    Sampling,
    ScoreRequest,
)
from unmask_server.telemetry import metrics, tracing


async def score(engine: Engine, request: ScoreRequest) -> list[PositionScores]:
    """See `Engine.score`."""
    kind, positions = engine.info.kind, len(request.positions)
    with _measured(kind, "score"), tracing.span("engine.score", engine=kind, positions=positions):
        found = await engine.score(request)
    metrics.ENGINE_POSITIONS.labels(kind).inc(positions)
    return found


async def sample(
    engine: Engine,
    requests: Sequence[SampleRequest],
    sampling: Sampling,
    stop_ids: frozenset[int],
) -> AsyncGenerator[Sample, None]:
    """See `Engine.sample`. The span is the caller's: one of a generator's would be its, too."""
    kind = engine.info.kind
    rollouts, tokens = metrics.ENGINE_ROLLOUTS.labels(kind), metrics.ENGINE_TOKENS.labels(kind)
    with _measured(kind, "sample"):
        async with aclosing(engine.sample(requests, sampling, stop_ids)) as samples:
            async for one in samples:
                rollouts.inc()
                tokens.inc(len(one.tokens))
                yield one


@contextmanager
def _measured(engine: str, call: str) -> Iterator[None]:
    in_flight = metrics.ENGINE_IN_FLIGHT.labels(engine, call)
    in_flight.inc()
    begun = time.perf_counter()
    try:
        yield
    except BadRequestError:
        # It can never be done, which is no fault of the engine.
        raise
    except Exception:
        metrics.ENGINE_ERRORS.labels(engine, call).inc()
        raise
    finally:
        in_flight.dec()
        metrics.ENGINE_SECONDS.labels(engine, call).observe(time.perf_counter() - begun)
