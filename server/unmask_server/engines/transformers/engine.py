"""`Engine` over Hugging Face transformers and torch, in this process.

The model's own layers run, with the attention function replaced by one that knows which keys each
token sees (`attention`). A worker thread (`worker`) keeps a running batch (`batch`, `rows`): what
requests have in common is computed once (`chains`), rows that finish make room for waiting ones,
and scores are answered between two steps. Models whose caches are not plain keys and values, found
out by comparing logits when loading (`loading`), are recomputed at every step (`recompute`).

Why not transformers' own batching (`generate_batch`, 5.24): it draws with `torch.multinomial` from
one global generator, so a request cannot be repeated from its seed, and on a CPU it was 6 to 9
times slower than plain `generate`. Measured with 64 requests of 80 to 160 tokens and 60 new ones,
a Qwen2 of 0.5M parameters, one thread: `generate` 2.5 to 3.1 s, `generate_batch` 16 to 26 s; with
300 tokens shared by each 16 requests 4.8 to 5.5 s and 36 to 47 s. `bench/transformers_engine.py`
compares this engine with `generate`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

from unmask_server.engines import validation
from unmask_server.engines.base import (
    ModelInfo,
    PositionScores,
    Sample,
    SampleRequest,
    Sampling,
    ScoreRequest,
)
from unmask_server.engines.transformers.calls import SampleCall, ScoreCall
from unmask_server.engines.transformers.loading import choose_backend, describe, read_model
from unmask_server.engines.transformers.recompute import RecomputeBackend
from unmask_server.engines.transformers.stats import EngineStats
from unmask_server.engines.transformers.worker import Worker

REMEMBERED_BYTES = 256 << 20
"""Final hidden states of scored sequences that are kept, unless told otherwise."""
_ONE_THREAD = 20_000_000
"""Models with fewer parameters run on one thread unless told otherwise: splitting such small
matrices costs more than it gives, and much more when other processes want the processors too."""
_QUICK = 20_000
"""Fewer tokens than this are checked on the event loop: it takes about a millisecond."""


class TransformersEngine:
    """A causal language model, its running batch and its caches, owned by one thread."""

    def __init__(self, info: ModelInfo, worker: Worker, *, recomputes: bool) -> None:
        self._info = info
        self._worker = worker
        self.recomputes = recomputes
        """Whether the model is run without a cache, because its own is not plain: much slower."""

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        max_batch: int = 64,
        max_cache_tokens: int | None = None,
        threads: int | None = None,
        vocab_size: int | None = None,
        remembered_bytes: int = REMEMBERED_BYTES,
    ) -> TransformersEngine:
        """Load a checkpoint in Hugging Face format. Takes seconds: see `open`.

        Args:
            path: its directory; nothing is downloaded.
            device: as torch names it.
            dtype: float32, bfloat16 or float16.
            max_batch: the most rollouts that run at once, >= 1.
            max_cache_tokens: the most tokens whose keys and values are held, >= 1; None for what
                fits a quarter of the device's memory. A request that needs more runs alone.
            threads: for the processor's matrix products; None for 1 with small models, else
                torch's default.
            vocab_size: how many columns of the logits have a token; the rest is padding and cut
                off before any softmax. None for all columns.
            remembered_bytes: for final hidden states of scored sequences.

        Raises:
            EngineError: the model cannot be loaded.
            ValueError: a limit is below 1.

        """
        for name, limit in (
            ("max_batch", max_batch), ("max_cache_tokens", max_cache_tokens), ("threads", threads),
        ):  # fmt: skip
            if limit is not None and limit < 1:
                raise ValueError(f"{name} is {limit}: it must be 1 or more")
        model = read_model(path, device=device, dtype=dtype)
        info = describe(model, vocab_size)
        backend = choose_backend(model, info, rows=max_batch, budget=max_cache_tokens)
        if threads is None and sum(p.numel() for p in model.parameters()) < _ONE_THREAD:
            threads = 1
        worker = Worker(backend, rows=max_batch, threads=threads, remembered_bytes=remembered_bytes)
        return cls(info, worker, recomputes=isinstance(backend, RecomputeBackend))

    @classmethod
    async def open(cls, path: str | Path, **options: Any) -> TransformersEngine:
        """`load` beside the event loop, with the same options."""
        return await asyncio.to_thread(cls.load, path, **options)

    @property
    def info(self) -> ModelInfo:
        """See `Engine`."""
        return self._info

    @property
    def stats(self) -> EngineStats:
        """What has been done so far: a copy."""
        return self._worker.stats

    async def sample(
        self, requests: Sequence[SampleRequest], sampling: Sampling, stop_ids: frozenset[int]
    ) -> AsyncGenerator[Sample, None]:
        """See `Engine`. Requests are checked when the first sample is asked for."""
        requests = tuple(requests)
        validation.check_sampling(sampling)
        validation.check_stop_ids(stop_ids, self._info.vocab_size)
        if not requests:
            return
        loop = asyncio.get_running_loop()

        def prepare() -> SampleCall:
            validation.check_sample_requests(requests, self._info)
            return SampleCall(requests, sampling, frozenset(stop_ids), loop)

        tokens = sum(len(request.prompt) + len(request.forced) for request in requests)
        call = prepare() if tokens < _QUICK else await asyncio.to_thread(prepare)
        self._worker.submit(call)
        left = len(requests)
        try:
            while left:
                for sample in await call.answer():
                    left -= 1
                    yield sample
        finally:
            if left:
                call.abandoned = True
                self._worker.nudge()

    async def score(self, request: ScoreRequest) -> list[PositionScores]:
        """See `Engine`."""
        validation.check_score_request(request, self._info)
        if not request.positions:
            return []
        call = ScoreCall(request)
        self._worker.submit(call)
        return await call.future

    async def close(self) -> None:
        """See `Engine`. May be called twice."""
        await asyncio.to_thread(self._worker.close)
