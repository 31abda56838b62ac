"""The book-keeping of running rows: what each has sampled, under what, and when it is done."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from unmask_server.engines.base import FinishReason, Sample, Sampling
from unmask_server.engines.transformers.calls import SampleCall
from unmask_server.engines.transformers.sampling import draw, uniforms


@dataclass(frozen=True, slots=True)
class Row:
    """Which request a row answers."""

    call: SampleCall
    index: int


class RunningBatch:
    """Rows ``0`` to ``len - 1``, numbered as the backend numbers them; all work is vectorised."""

    def __init__(self, capacity: int, vocab_size: int) -> None:
        self.rows: list[Row] = []
        self._vocab_size = vocab_size
        self._seeds = np.zeros(capacity, np.int64)
        self._steps = np.zeros(capacity, np.int64)
        self._limits = np.zeros(capacity, np.int64)
        self._last = np.zeros(capacity, np.int64)
        self._sampled = np.zeros((capacity, 64), np.int32)
        self._policies: list[tuple[Sampling, frozenset[int]]] = []
        """Distinct (sampling, stop ids) of the rows; `_policy` holds indices into it."""
        self._policy = np.zeros(capacity, np.int64)
        self._stops = np.zeros((0, vocab_size), np.bool_)
        self._groups: list[tuple[Sampling, NDArray[np.int64] | None]] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def last(self) -> NDArray[np.int64]:
        """The token that each row is fed next, shape (rows,)."""
        return self._last[: len(self.rows)]

    @property
    def remaining(self) -> NDArray[np.int64]:
        """Tokens that each row may still sample, shape (rows,)."""
        n = len(self.rows)
        return self._limits[:n] - self._steps[:n]

    def add(self, row: Row) -> None:
        """Append a row that answers a request."""
        if not self.rows:
            self._policies.clear()
            self._stops = self._stops[:0]
        i = len(self.rows)
        request = row.call.requests[row.index]
        self.rows.append(row)
        self._seeds[i] = request.seed
        self._steps[i] = 0
        self._limits[i] = request.max_new_tokens
        self._last[i] = row.call.tokens[row.index][-1]
        policy = (row.call.sampling, row.call.stop_ids)
        if policy not in self._policies:
            self._policies.append(policy)
            stops = np.zeros((1, self._vocab_size), np.bool_)
            stops[0, list(policy[1])] = True
            self._stops = np.concatenate([self._stops, stops])
        self._policy[i] = self._policies.index(policy)
        self._groups = None

    def sample(self, logits: torch.Tensor) -> NDArray[np.int64]:
        """Draw a token for every row, and say which rows are done, ascending."""
        n = len(self.rows)
        steps = self._steps[:n]
        tokens = draw(logits, self._grouped(), uniforms(self._seeds[:n], steps))
        if int(steps.max()) >= self._sampled.shape[1]:
            self._sampled = np.concatenate([self._sampled, np.zeros_like(self._sampled)], 1)
        self._sampled[np.arange(n), steps] = tokens
        steps += 1
        self._last[:n] = tokens
        done = self._stops[self._policy[:n], tokens] | (steps >= self._limits[:n])
        return np.flatnonzero(done)

    def result(self, i: int) -> Sample:
        """The finished rollout of a row. A stop token at the limit is a stop."""
        tokens = self._sampled[i, : self._steps[i]].tolist()
        stopped = bool(self._stops[self._policy[i], tokens[-1]])
        finish = FinishReason.STOP if stopped else FinishReason.LENGTH
        return Sample(self.rows[i].index, tuple(tokens), finish)

    def drop(self, i: int) -> None:
        """Let a row leave; the last row takes its number."""
        last = self.rows.pop()
        j = len(self.rows)
        if i != j:
            self.rows[i] = last
            for array in (
                self._seeds, self._steps, self._limits, self._last, self._sampled, self._policy,
            ):  # fmt: skip
                array[i] = array[j]
        self._groups = None

    def clear(self) -> None:
        """Let all rows leave."""
        self.rows.clear()
        self._groups = None

    def _grouped(self) -> list[tuple[Sampling, NDArray[np.int64] | None]]:
        if self._groups is None:
            members: dict[Sampling, list[int]] = {}
            for i, policy in enumerate(self._policy[: len(self.rows)].tolist()):
                members.setdefault(self._policies[policy][0], []).append(i)
            if len(members) == 1:
                self._groups = [(next(iter(members)), None)]
            else:
                self._groups = [(s, np.asarray(rows)) for s, rows in members.items()]
        return self._groups
