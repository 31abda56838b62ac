"""Next-token distributions from SGLang: one pass over a sequence for all of its positions.

The pass gives the likeliest ids at every position under the raw softmax. What it does not give
costs one-token requests, which the prefix cache makes cheap: log-probabilities of ids that are not
among the likeliest, and the normaliser at another temperature where it is not clear already.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from unmask_server.engines.base import (
    ZERO_LOGPROB,
    EngineError,
    PositionScores,
    Sampling,
    ScoreRequest,
)
from unmask_server.engines.sglang import views
from unmask_server.engines.sglang.client import Json
from unmask_server.engines.sglang.payloads import (
    Likeliest,
    read_input_logprob,
    read_input_own,
    read_input_top,
    read_output_top,
    scoring_fields,
)
from unmask_server.engines.sglang.replicas import Replicas

WHOLE_VOCABULARY = 1024
"""A model with so few columns is always asked for all of them."""
_LOGITS = 1 << 26
"""Logits (positions times columns) that one request makes a server compute: 256 MiB in float32.
Long
sequences over large vocabularies are what runs a server out of memory."""
_AT_ONCE = 8
"""Passes, or calls of one-token requests, that a server is asked for at once."""
_GROUP = 64
"""One-token requests sent in one call."""
_REMEMBERED = 4_000_000
"""Log-probabilities kept from earlier passes: 12 bytes each."""
_MORE = 4
"""By how much more ids are asked for where `top_p` needs more than there are."""


@dataclass(slots=True)
class Pass:
    """What is known along one sequence."""

    top: int
    """How many of the likeliest ids."""
    at: dict[int, Likeliest] = field(default_factory=dict)
    """By index: the likeliest ids after so many tokens, under the raw softmax."""
    extra: dict[tuple[int, int], float] = field(default_factory=dict)
    """Raw log-probabilities by (index, id)."""
    log_z: dict[tuple[int, float], float] = field(default_factory=dict)
    """By (index, temperature)."""

    @property
    def size(self) -> int:
        """Log-probabilities held."""
        return len(self.at) * self.top + len(self.extra)


class Scoring:
    """Answers `ScoreRequest`s."""

    def __init__(
        self,
        replicas: Replicas,
        *,
        columns: int,
        usable: int,
        whole: bool = False,
        tempers_output: bool = True,
    ) -> None:
        """Score through `replicas`.

        Args:
            replicas: the servers.
            columns: of the model's logits.
            usable: ids that have a token; the columns above are padding and cut off.
            whole: whether the padding has mass, so that only all columns give what is left.
            tempers_output: whether the log-probabilities of sampled tokens are at their
                temperature (a server can be told otherwise).

        """
        self._replicas = replicas
        self._columns = columns
        self._usable = usable
        self._whole = whole or columns <= WHOLE_VOCABULARY
        self._tempers_output = tempers_output
        self._passes: OrderedDict[bytes, Pass] = OrderedDict()
        self._slots = asyncio.Semaphore(_AT_ONCE * len(replicas.all))
        self.calls = 0
        """Passes over a sequence since the start."""
        self.small_calls = 0
        """One-token requests since the start."""

    async def score(self, request: ScoreRequest) -> list[PositionScores]:
        """One `PositionScores` a position. The request has been checked.

        Raises:
            EngineError: no server answers, or what it answers makes no sense.

        """
        tokens = (*request.prompt, *request.continuation)
        indices = [len(request.prompt) + position for position in request.positions]
        top = min(request.top_k, self._usable)
        cuts = [view.top_k for view in request.views]
        known = await self._pass(tokens, indices, max(top, 1, *cuts))
        for view in request.views:
            known = await self._widen(tokens, indices, known, view)
        for view in request.views:
            # A wider pass may have begun anew.
            await self._add_log_z(tokens, indices, known, view.temperature)
        also = request.also or ((),) * len(indices)
        wanted = [
            (index, token)
            for index, ids in zip(indices, also, strict=True)
            for token in dict.fromkeys(ids)
            if token not in known.at[index].ids[:top]
        ]
        await self._add_extra(tokens, known, wanted)
        return [
            self._position(known, index, top, tuple(dict.fromkeys(ids)), request.views)
            for index, ids in zip(indices, also, strict=True)
        ]

    async def _pass(self, tokens: tuple[int, ...], indices: Sequence[int], top: int) -> Pass:
        """The likeliest ids at all indices: from memory, or by one request."""
        top = self._columns if self._whole or top >= self._usable else min(top, self._columns)
        key = hashlib.blake2b(
            np.asarray((self._usable, *tokens), dtype="<u4").tobytes(), digest_size=16
        ).digest()
        found = self._passes.get(key)
        if found is not None and found.top >= top:
            self._passes.move_to_end(key)
            missing = [index for index in indices if index not in found.at]
            if not missing:
                return found
        else:
            missing = list(indices)
            before = found or Pass(0)
            found = Pass(top, extra=dict(before.extra), log_z=dict(before.log_z))
        for part in self._parts(missing):
            start = part[0] - 1
            # A token after the last one gives the distribution there; which one does not matter.
            until = (*tokens[: part[-1]], tokens[-1])
            async with self._slots:
                (answer,) = await self._replicas.generate(
                    [until], scoring_fields(start, found.top), affinity=affinity(tokens)
                )
            self.calls += 1
            for index, likeliest in zip(part, read_input_top(answer, start, part), strict=True):
                found.at[index] = self._without_padding(likeliest, found.top)
                # What the sequence itself goes on with is often asked for, and is in the answer.
                if index < len(tokens):
                    own = read_input_own(answer, start, index, tokens[index])
                    if own is not None:
                        found.extra[index, tokens[index]] = own
        self._remember(key, found)
        return found

    def _parts(self, indices: Sequence[int]) -> list[list[int]]:
        """Indices in runs whose logits a server can hold at once: the cache joins the runs."""
        longest = max(1, _LOGITS // self._columns)
        parts: list[list[int]] = [[]]
        for index in indices:
            if parts[-1] and index - parts[-1][0] >= longest:
                parts.append([])
            parts[-1].append(index)
        return parts

    def _without_padding(self, likeliest: Likeliest, top: int) -> Likeliest:
        real = likeliest.ids < self._usable
        if real.all() and top < self._columns:
            return likeliest
        ids, logprobs = likeliest.ids[real], likeliest.logprobs[real]
        if not len(ids):
            raise EngineError("all of the likeliest ids are padding: the model is broken")
        if top >= self._columns:
            # All are known: float32 sums to 1 only nearly, and padding takes its share.
            logprobs = logprobs - np.logaddexp.reduce(logprobs)
        return Likeliest(ids, logprobs)

    def _remember(self, key: bytes, found: Pass) -> None:
        self._passes[key] = found
        self._passes.move_to_end(key)
        held = sum(one.size for one in self._passes.values())
        while held > _REMEMBERED and len(self._passes) > 1:
            _, dropped = self._passes.popitem(last=False)
            held -= dropped.size

    def _is_complete(self, known: Pass) -> bool:
        return known.top >= self._columns

    async def _widen(
        self, tokens: tuple[int, ...], indices: Sequence[int], known: Pass, view: Sampling
    ) -> Pass:
        """Get what `view` needs at every index: the normaliser, and the ids that survive cuts."""
        await self._add_log_z(tokens, indices, known, view.temperature)
        if view.top_k == 0 and view.top_p >= 1.0:
            return known
        while any(self._survivors(known, index, view) is None for index in indices):
            known = await self._pass(tokens, indices, min(_MORE * known.top, self._columns))
            await self._add_log_z(tokens, indices, known, view.temperature)
        return known

    def _survivors(self, known: Pass, index: int, view: Sampling) -> int | None:
        tempered = self._tempered(known, index, view.temperature, known.at[index].logprobs)
        return views.kept(tempered, view, complete=self._is_complete(known))

    def _tempered(
        self, known: Pass, index: int, temperature: float, raw: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        if temperature == 1.0:
            return raw
        return raw / temperature - known.log_z[index, temperature]

    async def _add_log_z(
        self, tokens: tuple[int, ...], indices: Sequence[int], known: Pass, temperature: float
    ) -> None:
        if temperature == 1.0:
            return
        missing = []
        for index in indices:
            if (index, temperature) in known.log_z:
                continue
            raw = known.at[index].logprobs
            rest = 0 if self._is_complete(known) else self._usable - len(raw)
            value = views.log_z(raw, temperature, rest=rest)
            if value is None:
                missing.append(index)
            else:
                known.log_z[index, temperature] = value
        if not missing:
            return
        if not self._tempers_output:
            wide = await self._pass(tokens, missing, self._columns)
            for index in missing:
                raw = wide.at[index].logprobs
                known.log_z[index, temperature] = float(np.logaddexp.reduce(raw / temperature))
            return

        async def ask(index: int) -> None:
            # One input a call: each has a start of its own.
            fields = scoring_fields(index, 1, temperature=temperature, new=1)
            (answer,) = await self._small([tokens[:index]], fields, tokens)
            tempered = read_output_top(answer)
            likeliest = known.at[index]
            at = np.flatnonzero(likeliest.ids == tempered.ids[0])
            if not len(at):
                raise EngineError("SGLang's likeliest id changes with the temperature")
            raw = float(likeliest.logprobs[at[0]])
            known.log_z[index, temperature] = raw / temperature - float(tempered.logprobs[0])

        await asyncio.gather(*map(ask, missing))

    async def _add_extra(
        self, tokens: tuple[int, ...], known: Pass, wanted: Sequence[tuple[int, int]]
    ) -> None:
        """Raw log-probabilities of single ids: each is the last token of an input of its own."""
        missing = []
        for index, token in wanted:
            likeliest = known.at[index]
            at = np.flatnonzero(likeliest.ids == token)
            if len(at):
                known.extra[index, token] = float(likeliest.logprobs[at[0]])
            elif (index, token) not in known.extra:
                missing.append((index, token))

        by_index: dict[int, list[int]] = {}
        for index, token in missing:
            by_index.setdefault(index, []).append(token)

        async def ask(index: int, ids: Sequence[int]) -> None:
            # "To read token i the start is at most i - 1": its entry is then not the null one.
            inputs = [(*tokens[:index], token) for token in ids]
            answers = await self._small(inputs, scoring_fields(index - 1, 0), tokens)
            for token, answer in zip(ids, answers, strict=True):
                known.extra[index, token] = read_input_logprob(answer)

        await asyncio.gather(
            *(
                ask(index, ids[k : k + _GROUP])
                for index, ids in by_index.items()
                for k in range(0, len(ids), _GROUP)
            )
        )

    async def _small(
        self, inputs: Sequence[tuple[int, ...]], fields: Json, tokens: tuple[int, ...]
    ) -> list[Json]:
        self.small_calls += len(inputs)
        async with self._slots:
            return await self._replicas.generate(inputs, fields, affinity=affinity(tokens))

    def _position(
        self,
        known: Pass,
        index: int,
        top: int,
        also: tuple[int, ...],
        wanted: Sequence[Sampling],
    ) -> PositionScores:
        likeliest = known.at[index]
        first = likeliest.ids[:top]
        extra = [token for token in also if token not in first]
        ids = np.concatenate([first, np.asarray(extra, dtype=np.int32)])
        raw = np.concatenate(
            [likeliest.logprobs[:top], [known.extra[index, token] for token in extra]]
        )
        rows = []
        for view in wanted:
            values = self._tempered(known, index, view.temperature, raw)
            if view.top_k or view.top_p < 1.0:
                n = self._survivors(known, index, view)
                whole = self._tempered(known, index, view.temperature, likeliest.logprobs[:n])
                survives = np.isin(ids, likeliest.ids[:n])
                values = views.cut(values, survives, float(np.exp(whole).sum()))
            rows.append(np.clip(values, ZERO_LOGPROB, 0.0))
        return PositionScores(ids, np.asarray(rows, dtype=np.float32))


def affinity(tokens: Sequence[int]) -> bytes:
    """Sequences that begin alike go to the same server."""
    return np.asarray(tokens[:_AFFINITY_TOKENS], dtype="<u4").tobytes()


_AFFINITY_TOKENS = 64
