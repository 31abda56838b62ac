"""`python -m bench.load_clients`: clients in a process of their own, told on standard input.

Each client has a connection of its own and calls at random moments, `rate` times a second on
average, whether or not the call before was answered: a call's time counts from the moment it was
meant for, so that a server that stalls is not asked less. A slow call delays none of another kind
here, only in the server. Writes one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

import grpc
from unmask.v1 import diagnosis_pb2

TIMEOUT = 60.0


@dataclass
class Kind:
    """A kind of call."""

    name: str
    method: str
    streams: bool
    weight: float
    requests: list[bytes]
    varied: bool = False
    """Alignments that nobody asked for before: no two are the same."""

    @classmethod
    def of(cls, told: dict[str, Any]) -> Kind:
        return cls(**{**told, "requests": [bytes.fromhex(one) for one in told["requests"]]})


@dataclass
class Found:
    """What was measured."""

    milliseconds: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    errors: Counter[str] = field(default_factory=Counter)


async def client(
    address: str, kinds: list[Kind], rate: float, seconds: float, rng: random.Random, found: Found
) -> None:
    """Call for so long."""
    weights = [kind.weight for kind in kinds]
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(address, options) as channel:
        await channel.channel_ready()
        until = time.monotonic() + seconds
        meant = time.monotonic() + rng.expovariate(rate)
        async with asyncio.TaskGroup() as calls:
            while meant < until:
                await asyncio.sleep(max(0.0, meant - time.monotonic()))
                kind = rng.choices(kinds, weights)[0]
                request = rng.choice(kind.requests)
                if kind.varied:
                    request = _varied(request, rng)
                calls.create_task(_timed(channel, kind, request, meant, found))
                meant += rng.expovariate(rate)


async def _timed(
    channel: grpc.aio.Channel, kind: Kind, request: bytes, meant: float, found: Found
) -> None:
    try:
        await _call(channel, kind, request)
    except grpc.aio.AioRpcError as error:
        found.errors[f"{kind.name}: {error.code().name}"] += 1
    found.milliseconds[kind.name].append(1e3 * (time.monotonic() - meant))


def _varied(request: bytes, rng: random.Random) -> bytes:
    changed = diagnosis_pb2.GetAlignmentRequest.FromString(request)
    changed.options.min_coverage = rng.random()
    return changed.SerializeToString()


async def _call(channel: grpc.aio.Channel, kind: Kind, request: bytes) -> None:
    if not kind.streams:
        await channel.unary_unary(kind.method)(request, timeout=TIMEOUT)
        return
    async for _ in channel.unary_stream(kind.method)(request, timeout=TIMEOUT):
        pass


async def main() -> None:
    told = json.load(sys.stdin)
    kinds = [Kind.of(one) for one in told["kinds"]]
    found = Found()
    async with asyncio.TaskGroup() as group:
        for i in range(told["clients"]):
            rng = random.Random(f"{told['seed']}/{i}")
            group.create_task(
                client(told["address"], kinds, told["rate"], told["seconds"], rng, found)
            )
    print(json.dumps({"milliseconds": found.milliseconds, "errors": found.errors}))


if __name__ == "__main__":
    asyncio.run(main())
