"""What a model's servers are found to be, before anything is believed of them.

A server's word is checked where it can be: its vocabulary by asking for an id beyond it (which it
refuses), its weights against the files, its log-probabilities against each other. Nothing is asked
for that would kill a server of another vocabulary than expected.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unmask_server.engines.base import EngineError
from unmask_server.engines.sglang.client import GoneError, RefusedError, ServerInfo, SglangClient
from unmask_server.engines.sglang.payloads import (
    Likeliest,
    read_input_top,
    read_output_top,
    scoring_fields,
)
from unmask_server.engines.sglang.sessions import MayCall, open_session

OLDEST = (0, 5, 20)
"""The oldest SGLang that is known to refuse what would kill it."""
SAME_TIMES = 8
"""How often each server scores one sequence, at once, to see how well it repeats itself."""
_PROBE_TOKENS = 64
_PROBE_TOP = 20
_LIKELY = np.log(1e-3)
"""Only ids that matter are compared."""
_VALID_RANGE = re.compile(r"valid range is \[0, (\d+)\)")
_TEMPERATURE = 0.5
_SAME = 1e-2
"""Relative difference of parameters up to which they are the same in another precision."""


class MismatchError(Exception):
    """A server is not what was registered; the message says in what."""


@dataclass(frozen=True, slots=True)
class Serving:
    """What the servers of a model were found to be."""

    model_path: str
    served_name: str
    weight_version: str
    version: str | None
    """Of SGLang; None behind a router that does not tell."""
    max_input: int | None
    max_running: int | None
    padding_mass: float
    """Probability that the columns without a token had, at most, where it was looked."""
    tempers_output: bool
    """Whether log-probabilities of sampled tokens are at their temperature."""
    noise: float
    """Root mean square difference, in nats, between two scorings of one sequence: alone and in a
    batch, from the prefix cache and without, by one server and another; the worst of them."""
    remarks: tuple[str, ...] = ()
    """What else is odd about them, for whoever registers the model."""

    def to_json(self) -> dict[str, Any]:
        """For the database."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Serving:
        """The inverse of `to_json`."""
        return cls(**data | {"remarks": tuple(data.get("remarks", ()))})


async def inspect(
    urls: Sequence[str],
    *,
    columns: int,
    usable: int,
    timeout: float = 120.0,
    may_call: MayCall | None = None,
) -> Serving:
    """Look at all servers of a model.

    Args:
        urls: their addresses; at least one.
        columns: of the logits, by the model's configuration.
        usable: ids that have a token.
        timeout: seconds that a scoring may take.
        may_call: asked before a connection is opened; see `open_session`.

    Raises:
        MismatchError: they are not one model, or not the one expected.
        EngineError: one does not answer.

    """
    async with open_session(may_call) as session:
        clients = [SglangClient(url, session, timeout=timeout) for url in urls]
        try:
            return await _inspect(clients, columns, usable)
        except GoneError as error:
            raise EngineError(str(error)) from None
        except RefusedError as error:
            raise MismatchError(str(error)) from None
        finally:
            for client in clients:
                await client.close()


async def _inspect(clients: Sequence[SglangClient], columns: int, usable: int) -> Serving:
    infos = [await client.info() for client in clients]
    first = infos[0]
    for client, info in zip(clients, infos, strict=True):
        _check_version(client.url, info)
        for what in ("weight_version", "served_name"):
            if getattr(info, what) != getattr(first, what):
                raise MismatchError(
                    f"{client.url} serves {what} {getattr(info, what)!r}, but "
                    f"{clients[0].url} {getattr(first, what)!r}: replicas must be of one model"
                )
    for client, info in zip(clients, infos, strict=True):
        await _check_vocabulary(client, info, columns)
    room = min(info.max_input or _PROBE_TOKENS for info in infos) - 1
    length = max(2, min(_PROBE_TOKENS, room))
    # Fresh tokens every time: nothing of them is in a prefix cache yet.
    rng = np.random.default_rng(secrets.randbits(64))
    tokens = rng.integers(0, usable, length).tolist()
    scorings = [found for client in clients for found in await _scorings(client, tokens, columns)]
    mass, tempers = await _columns(clients[0], tokens, columns, usable)
    running = [info.max_running for info in infos if info.max_running]
    inputs = [info.max_input for info in infos if info.max_input]
    return Serving(
        model_path=first.model_path,
        served_name=first.served_name,
        weight_version=first.weight_version,
        version=first.version,
        max_input=min(inputs, default=None),
        max_running=min(running, default=None),
        padding_mass=mass,
        tempers_output=tempers,
        noise=_spread(scorings),
    )


def _check_version(url: str, info: ServerInfo) -> None:
    if info.version is None:
        return
    numbers = re.match(r"(\d+)\.(\d+)\.(\d+)", info.version)
    if numbers and tuple(map(int, numbers.groups())) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise MismatchError(
            f"{url} runs SGLang {info.version}, which some requests kill; use {oldest} or later"
        )


async def _check_vocabulary(client: SglangClient, info: ServerInfo, columns: int) -> None:
    """Compare the vocabulary's size: an id beyond it would kill the server."""
    if info.version is None:
        return
    fields = scoring_fields(0, 0) | {"token_ids_logprob": [2**31 - 1]}
    try:
        await client.generate([[0]], fields)
    except RefusedError as error:
        found = _VALID_RANGE.search(str(error))
        if found is None:
            return
        served = int(found.group(1))
        if served != columns:
            raise MismatchError(
                f"{client.url} serves a model of {served} columns, but the registered one has "
                f"{columns}: they are not the same model"
            ) from None


async def _scorings(
    client: SglangClient, tokens: Sequence[int], columns: int
) -> list[list[Likeliest]]:
    """One sequence scored alone and cold, then several times at once and warm."""
    fields = scoring_fields(0, min(_PROBE_TOP, columns))
    indices = range(1, len(tokens))

    async def once() -> list[Likeliest]:
        (answer,) = await client.generate([tokens], fields)
        return read_input_top(answer, 0, indices)

    # From the middle on the prefix comes from the cache; it is used only up to the start.
    half = len(tokens) // 2
    warm_fields = scoring_fields(half, min(_PROBE_TOP, columns))

    async def warm() -> list[Likeliest]:
        (answer,) = await client.generate([tokens], warm_fields)
        return read_input_top(answer, half, range(half + 1, len(tokens)))

    cold = await once()
    others = await asyncio.gather(*(warm() for _ in range(SAME_TIMES)))
    return [cold, *(cold[:half] + other for other in others)]


def _spread(scorings: Sequence[Sequence[Likeliest]]) -> float:
    """The largest root mean square difference between the first scoring and another."""
    worst = 0.0
    for other in scorings[1:]:
        differences: list[NDArray[np.float64]] = []
        for a, b in zip(scorings[0], other, strict=True):
            ids, at_a, at_b = np.intersect1d(a.ids, b.ids, return_indices=True)
            likely = (a.logprobs[at_a] > _LIKELY) | (b.logprobs[at_b] > _LIKELY)
            if len(ids):
                differences.append((a.logprobs[at_a] - b.logprobs[at_b])[likely])
        moved = np.concatenate(differences) if differences else np.zeros(0)
        # Positions that both answered from the same computation say nothing.
        moved = moved[moved != 0.0]
        if len(moved):
            worst = max(worst, float(np.sqrt(np.mean(moved**2))))
    return worst


async def _columns(
    client: SglangClient, tokens: Sequence[int], columns: int, usable: int
) -> tuple[float, bool]:
    """The padding's mass, and whether a sampled token's log-probability is tempered."""
    index = len(tokens) - 1
    (answer,) = await client.generate([tokens], scoring_fields(index - 1, columns))
    (whole,) = read_input_top(answer, index - 1, [index])
    fields = scoring_fields(index, 1, temperature=_TEMPERATURE, new=1)
    (answer,) = await client.generate([tokens[:index]], fields)
    tempered = read_output_top(answer)
    exact = whole.logprobs / _TEMPERATURE
    exact = exact - np.logaddexp.reduce(exact)
    expected = exact[whole.ids == tempered.ids[0]]
    tempers = bool(len(expected)) and abs(float(expected[0] - tempered.logprobs[0])) < 0.05
    padding = float(np.exp(whole.logprobs[whole.ids >= usable]).sum())
    return padding, tempers


async def served_weights(
    url: str, name: str, rows: int, *, may_call: MayCall | None = None
) -> list[Any] | None:
    """The first rows of a parameter on a server; None where it does not tell."""
    async with open_session(may_call) as session:
        return await SglangClient(url, session, timeout=60.0).weights(name, rows)


async def served_tokens(
    url: str, texts: Sequence[str], *, may_call: MayCall | None = None
) -> list[list[int] | None]:
    """The ids of texts by a server's tokenizer; None where it does not tell."""
    async with open_session(may_call) as session:
        client = SglangClient(url, session, timeout=60.0)
        return [await client.tokenize(text) for text in texts]


async def server_info(url: str, *, may_call: MayCall | None = None) -> ServerInfo:
    """What a server says of itself.

    Raises:
        MismatchError: it is no SGLang server.
        EngineError: it does not answer.

    """
    async with open_session(may_call) as session:
        try:
            return await SglangClient(url, session, timeout=60.0).info()
        except GoneError as error:
            raise EngineError(str(error)) from None
        except RefusedError as error:
            raise MismatchError(str(error)) from None


def same_parameters(ours: NDArray[np.float64], theirs: Sequence[Any]) -> bool:
    """Whether two parameters are the same but for their precision."""
    other = np.asarray(theirs, dtype=np.float64)
    if ours.shape != other.shape:
        return False
    scale = float(np.abs(ours).max()) or 1.0
    return bool(np.all(np.abs(ours - other) <= _SAME * scale))
