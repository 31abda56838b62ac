"""The SGLang engine: a model that one or more SGLang servers run."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from unmask_server.engines import validation
from unmask_server.engines.base import (
    BadRequestError,
    EngineError,
    ModelInfo,
    PositionScores,
    Sample,
    SampleRequest,
    Sampling,
    ScoreRequest,
)
from unmask_server.engines.sglang.client import SglangClient
from unmask_server.engines.sglang.inspection import Serving
from unmask_server.engines.sglang.replicas import Replica, Replicas
from unmask_server.engines.sglang.rollouts import Rollouts
from unmask_server.engines.sglang.scoring import Scoring
from unmask_server.engines.sglang.sessions import MayCall, open_session

PADDING_MATTERS = 1e-6
"""Padding columns with more mass than this are forbidden in sampling, and taken out of every
distribution, which then takes the whole vocabulary."""
_RUNNING = 256
"""Requests that a server is taken to run at once where it does not say."""
_QUEUED = 1.25
"""Requests in flight for each that can run: the next ones are there before the last are done."""


class SglangEngine:
    """See `Engine`. Policies that differ only in sampling share one."""

    def __init__(
        self,
        urls: Sequence[str],
        serving: Serving,
        *,
        columns: int,
        usable: int,
        max_context: int,
        eos_ids: Sequence[int] = (),
        max_in_flight: int = 1024,
        timeout: float = 1800.0,
        patience: float = 120.0,
        may_call: MayCall | None = None,
    ) -> None:
        """Serve a model from SGLang; to be made within a running event loop.

        Args:
            urls: the servers' addresses; at least one.
            serving: what they were found to be when the model was registered.
            columns: of the model's logits.
            usable: ids that have a token.
            max_context: prompt and generation together, in tokens, by the model's configuration.
            eos_ids: the model's end tokens.
            max_in_flight: rollouts sent and not answered, at most.
            timeout: seconds that one request may take, its wait in the server's queue included.
            patience: seconds to wait for a server when none answers.
            may_call: asked before a connection is opened; see `open_session`.

        """
        # Idle connections go before the server closes them (uvicorn does after 5 s): a request sent
        # on one that is just being closed looks like a server that died.
        self._session = open_session(may_call, limit=0, keepalive_timeout=2.0)
        self._replicas = Replicas(
            [
                Replica(SglangClient(url, self._session, timeout=timeout), serving.weight_version)
                for url in urls
            ],
            patience=patience,
        )
        context = min(max_context, serving.max_input or max_context)
        self._info = ModelInfo(usable, context, frozenset(eos_ids), kind="sglang")
        padded = serving.padding_mass > PADDING_MATTERS
        running = serving.max_running or _RUNNING
        self._rollouts = Rollouts(
            self._replicas,
            self._info,
            columns=columns,
            in_flight=min(max_in_flight, int(running * len(urls) * _QUEUED)),
            bans_padding=padded,
        )
        self._scoring = Scoring(
            self._replicas,
            columns=columns,
            usable=usable,
            whole=padded,
            tempers_output=serving.tempers_output,
        )
        self._is_closed = False

    @property
    def info(self) -> ModelInfo:
        """See `Engine`."""
        return self._info

    @property
    def replicas(self) -> Replicas:
        """The servers."""
        return self._replicas

    @property
    def rollouts(self) -> Rollouts:
        """What sampled so far, with its statistics."""
        return self._rollouts

    @property
    def scoring(self) -> Scoring:
        """What scored so far, with its statistics."""
        return self._scoring

    async def sample(
        self, requests: Sequence[SampleRequest], sampling: Sampling, stop_ids: frozenset[int]
    ) -> AsyncGenerator[Sample, None]:
        """See `Engine`. A request's seed is not used: SGLang's sampling does not repeat."""
        self._require_open()
        validation.check_sampling(sampling)
        validation.check_stop_ids(stop_ids, self._info.vocab_size)
        validation.check_sample_requests(requests, self._info)
        if sampling.top_k and sampling.top_p < 1.0 and not sampling.joint:
            raise BadRequestError(
                "SGLang takes top_p of the whole distribution where top_k is set too: register the "
                "policy with its model on SGLang, so that its distribution is known as that"
            )
        async with aclosing(self._rollouts.sample(requests, sampling, stop_ids)) as samples:
            async for sample in samples:
                yield sample

    async def score(self, request: ScoreRequest) -> list[PositionScores]:
        """See `Engine`."""
        self._require_open()
        validation.check_score_request(request, self._info)
        if not request.positions:
            return []
        return await self._scoring.score(request)

    async def close(self) -> None:
        """See `Engine`. May be called twice; the servers go on."""
        self._is_closed = True
        await self._replicas.close()
        await self._session.close()

    def _require_open(self) -> None:
        if self._is_closed:
            raise EngineError("the engine is closed")
