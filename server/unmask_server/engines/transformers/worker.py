"""The thread that owns the model: it prefills, steps, scores, and answers callers.

Rows that finish make room for waiting requests between two steps (continuous batching). Score
requests get one pass between two steps, so neither kind of work starves the other.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace

import torch

from unmask_server.engines.base import EngineError, Sample
from unmask_server.engines.transformers.backend import Backend, Work
from unmask_server.engines.transformers.batch import Row, RunningBatch
from unmask_server.engines.transformers.calls import SampleCall, ScoreCall
from unmask_server.engines.transformers.scoring import (
    HiddenCache,
    NotFiniteError,
    check_finite,
    score,
)
from unmask_server.engines.transformers.stats import EngineStats

log = logging.getLogger(__name__)

_SCORE_TOKENS = 4096
"""Score requests of up to this many tokens together share a pass."""
_REFILL = 8
"""Waiting requests join once an eighth of the rows is free: a prefill pass for every single row
that leaves would cost more than the empty rows."""
_PATIENCE = 16
"""But none waits for that longer than this many steps while any row is free."""


class Worker:
    """Runs a backend in a thread of its own. Methods may be called from any thread."""

    def __init__(
        self, backend: Backend, *, rows: int, threads: int | None, remembered_bytes: int
    ) -> None:
        self._backend = backend
        self._capacity = rows
        self._threads = threads
        self._wake = threading.Condition()
        self._inbox: list[SampleCall | ScoreCall] = []
        self._closing = False
        self._calls: deque[SampleCall] = deque()
        self._scores: deque[ScoreCall] = deque()
        self._scoring: list[ScoreCall] = []
        """Being worked on."""
        self._batch = RunningBatch(rows, backend.vocab_size)
        self._steps_waited = 0
        self._remembered = HiddenCache(remembered_bytes)
        self._stats = EngineStats()
        self._thread = threading.Thread(target=self._run, name="unmask-engine", daemon=True)
        self._thread.start()

    @property
    def stats(self) -> EngineStats:
        """A copy of the counters."""
        return replace(self._stats)

    def submit(self, call: SampleCall | ScoreCall) -> None:
        """Queue a call.

        Raises:
            EngineError: the engine is closed.

        """
        with self._wake:
            if self._closing:
                raise EngineError("the engine is closed")
            self._inbox.append(call)
            self._wake.notify()

    def nudge(self) -> None:
        """Make the worker notice that a call was abandoned."""
        with self._wake:
            self._wake.notify()

    def close(self) -> None:
        """Stop: running calls fail, and the thread ends. Waits for it."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()
        self._backend.clear()
        self._remembered.clear()

    def _run(self) -> None:
        if self._threads is not None:
            torch.set_num_threads(self._threads)
        with torch.inference_mode():
            while self._wait():
                self._attempt(self._score_some, self._fail_scores)
                self._attempt(self._advance, self._fail_samples)
            closed = EngineError("the engine was closed")
            self._scoring.extend(self._scores)
            self._fail_scores(closed)
            self._fail_samples(closed)

    def _wait(self) -> bool:
        """Take in new calls, waiting for some if there is nothing to do. False: close."""
        with self._wake:
            while not (self._inbox or self._closing or self._calls or self._scores or self._batch):
                self._wake.wait()
            inbox, self._inbox = self._inbox, []
            for call in inbox:
                if isinstance(call, SampleCall):
                    self._calls.append(call)
                else:
                    self._scores.append(call)
            return not self._closing

    def _attempt(self, work: Callable[[], None], fail: Callable[[EngineError], None]) -> None:
        """Do some work; if it fails, fail the calls it was for, and keep serving others."""
        try:
            work()
        except Exception as error:  # whatever the model raises
            log.exception("the engine failed")
            fail(EngineError(f"the engine failed: {type(error).__name__}: {error}"))

    def _fail_scores(self, error: EngineError) -> None:
        for call in self._scoring:
            call.deliver(error)
        self._scoring.clear()

    def _fail_samples(self, error: EngineError) -> None:
        """Fail every call with running or waiting requests; nothing of their state is kept."""
        running = {row.call: None for row in self._batch.rows}
        for call in dict.fromkeys([*running, *self._calls]):
            call.deliver(error)
        waiting = sum(len(call.waiting) for call in self._calls)
        self._stats.rollouts_abandoned += len(self._batch) + waiting
        self._calls.clear()
        self._batch.clear()
        self._backend.clear()
        self._note()

    def _reap(self) -> None:
        """Free what belongs to callers that have left."""
        for i in reversed(range(len(self._batch))):
            if self._batch.rows[i].call.abandoned:
                self._drop(i)
                self._stats.rollouts_abandoned += 1
        for call in [call for call in self._calls if call.abandoned]:
            self._calls.remove(call)
            self._stats.rollouts_abandoned += len(call.waiting)
        self._note()

    def _drop(self, i: int) -> None:
        self._backend.drop(i)
        self._batch.drop(i)

    def _advance(self) -> None:
        """Let callers' requests out and in, and sample one token in every row."""
        self._reap()
        self._admit()
        if not self._batch:
            return
        logits = self._backend.step(self._batch.last)
        check_finite(logits)
        self._stats.forward_steps += 1
        self._stats.tokens_sampled += len(self._batch)
        finished: dict[SampleCall, list[Sample]] = {}
        for i in self._batch.sample(logits)[::-1].tolist():
            row = self._batch.rows[i]
            finished.setdefault(row.call, []).append(self._batch.result(i))
            self._drop(i)
        for call, samples in finished.items():
            self._stats.rollouts_finished += len(samples)
            self._note()
            call.deliver(samples)

    def _admit(self) -> None:
        """Fill free rows, from each caller in turn."""
        free = self._capacity - len(self._batch)
        waiting = sum(len(call.waiting) for call in self._calls)
        self._steps_waited += 1
        if not free or not waiting:
            return
        few = free < waiting and free < self._capacity // _REFILL
        if self._batch and few and self._steps_waited < _PATIENCE:
            return
        self._steps_waited = 0
        chosen = self._choose(free)
        for row in chosen:
            self._batch.add(row)
        # Rows are in the batch before they are prefilled: should that fail, they fail with it.
        self._count(self._backend.add([row.call.tokens[row.index][:-1] for row in chosen]))
        self._stats.prompt_tokens_computed += len(chosen)  # the last tokens, fed by the first step
        self._trim()
        self._note()

    def _choose(self, free: int) -> list[Row]:
        """Take requests for up to `free` rows, as many as there is memory for, at least one."""
        chosen: list[Row] = []
        longest, running = self._longest(), len(self._batch)
        room = self._backend.budget - self._backend.pinned()
        while self._calls and len(chosen) < free:
            call = self._calls[0]
            share = -(-(free - len(chosen)) // len(self._calls))
            while share and call.waiting:
                index = call.waiting[0]
                need = len(call.tokens[index]) + call.requests[index].max_new_tokens
                rows = running + len(chosen)
                if rows and (rows + 1) * max(need, longest) > room:
                    return chosen
                longest, share = max(need, longest), share - 1
                chosen.append(Row(call, call.waiting.popleft()))
            self._calls.rotate(-1)
            if not call.waiting:
                self._calls.remove(call)
        return chosen

    def _longest(self) -> int:
        """Tokens that the longest row may come to keep for itself; all rows get as many columns."""
        return int((self._backend.own() + self._batch.remaining).max(initial=0))

    def _trim(self) -> None:
        """Keep what is held for sharing within what the rows leave of the budget."""
        self._backend.trim(self._backend.budget - len(self._batch) * self._longest())

    def _score_some(self) -> None:
        """Answer waiting score requests, in one pass as many as it may hold."""
        tokens = 0
        while self._scores and (
            not self._scoring or tokens + len(self._scores[0].tokens) <= _SCORE_TOKENS
        ):
            call = self._scores.popleft()
            if not call.abandoned:
                self._scoring.append(call)
                tokens += len(call.tokens)
        if not self._scoring:
            return
        self._find_states()
        for call in self._scoring:
            assert call.states is not None
            try:
                call.deliver(score(call.request, call.states, self._backend.head))
            except NotFiniteError as error:
                call.deliver(EngineError(str(error)))
        self._scoring.clear()

    def _find_states(self) -> None:
        """Give every call in work its hidden states: remembered ones, or from one pass for all."""
        missing: dict[bytes, list[ScoreCall]] = {}
        for call in self._scoring:
            call.states = self._remembered.get(call.tokens, call.indices)
            if call.states is None:
                missing.setdefault(call.tokens.tobytes(), []).append(call)
        computed = sum(map(len, missing.values()))
        self._stats.scores_computed += computed
        self._stats.scores_remembered += len(self._scoring) - computed
        if not missing:
            return
        same = list(missing.values())
        spans = [self._span(calls) for calls in same]
        states, work = self._backend.hidden(
            [calls[0].tokens[: last + 1] for calls, (_, last) in zip(same, spans, strict=True)],
            [first for first, _ in spans],
        )
        self._count(work)
        for calls, (first, _), found in zip(same, spans, states, strict=True):
            self._remembered.put(calls[0].tokens, first, found)
            for call in calls:
                call.states = found[torch.from_numpy(call.indices - first).to(found.device)]
        self._trim()

    def _span(self, calls: list[ScoreCall]) -> tuple[int, int]:
        """First and last index wanted of one sequence, with what is known of it already."""
        known = self._remembered.span(calls[0].tokens)
        spans = [(int(call.indices[0]), int(call.indices[-1])) for call in calls]
        spans += [] if known is None else [known]
        return min(first for first, _ in spans), max(last for _, last in spans)

    def _count(self, work: Work) -> None:
        self._stats.prompt_tokens_computed += work.computed
        self._stats.prompt_tokens_shared += work.shared
        self._stats.prefill_passes += work.passes

    def _note(self) -> None:
        self._stats.rows_running = len(self._batch)
        self._stats.cached_tokens = self._backend.cached()
