"""One request as it is sent, and what came back."""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from tests.fuzz.pool import NotANumberError, Pool
from tests.fuzz.rpcs import Rpc

PATIENCE_SECONDS = 120.0
"""Any request is answered within this time, on a machine that is busy with fuzzing."""
STREAM_SECONDS = 0.5
"""What is read of a stream that may not end."""
NEVER = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS}
"""Codes that no request may cause."""
EXPLAINED = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.FAILED_PRECONDITION,
}
"""Codes that come with details."""
_DETAILS = "grpc-status-details-bin"
_COMPRESSIONS = {
    "none": grpc.Compression.NoCompression,
    "deflate": grpc.Compression.Deflate,
    "gzip": grpc.Compression.Gzip,
}


@dataclass(frozen=True)
class Sent:
    """A request and how it is sent."""

    path: str
    data: bytes
    metadata: tuple[tuple[str, str | bytes], ...] = ()
    compression: str = "none"
    timeout: float | None = None
    """A deadline of the client's own."""
    cancel_after: float | None = None
    read: int | None = None
    """Answers of a stream that are read before it is left."""

    def to_json(self) -> str:
        """To be saved."""
        told = asdict(self) | {
            "data": self.data.hex(),
            "metadata": [[k, v.hex() if isinstance(v, bytes) else v] for k, v in self.metadata],
        }
        return json.dumps(told, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Sent:
        told = json.loads(text)
        told["data"] = bytes.fromhex(told["data"])
        told["metadata"] = tuple(
            (k, bytes.fromhex(v) if k.endswith("-bin") else v) for k, v in told["metadata"]
        )
        return cls(**told)


@dataclass
class Answer:
    """What came back."""

    code: grpc.StatusCode
    message: str = ""
    explained: bool = False
    """Whether it came with details."""
    parts: list[bytes] = field(default_factory=list)
    seconds: float = 0.0


async def send(channel: grpc.aio.Channel, rpc: Rpc, sent: Sent) -> Answer:
    """Send it and wait for all that is wanted of the answer."""
    limit = STREAM_SECONDS if rpc.name.endswith(("/Watch", "/WatchGrowth")) else PATIENCE_SECONDS
    options: dict[str, Any] = {
        "timeout": limit if sent.timeout is None else sent.timeout,
        "metadata": sent.metadata,
        "compression": _COMPRESSIONS[sent.compression],
    }
    call: Any
    if rpc.streams:
        call = channel.unary_stream(rpc.path)(sent.data, **options)
    else:
        call = channel.unary_unary(rpc.path)(sent.data, **options)
    begun = time.monotonic()
    answer = Answer(grpc.StatusCode.OK)
    try:
        if sent.cancel_after is not None:
            asyncio.get_running_loop().call_later(sent.cancel_after, call.cancel)
        if rpc.streams:
            async for part in call:
                answer.parts.append(part)
                if len(answer.parts) == sent.read:
                    call.cancel()
        else:
            answer.parts.append(await call)
    except grpc.aio.AioRpcError as error:
        answer.code = error.code()
        answer.message = error.details() or ""
        answer.explained = any(key == _DETAILS for key, _ in error.trailing_metadata())
    except asyncio.CancelledError:
        if not call.cancelled():
            raise
        answer.code = grpc.StatusCode.CANCELLED
    answer.seconds = time.monotonic() - begun
    return answer


def problem(rpc: Rpc, sent: Sent, answer: Answer, pool: Pool | None = None) -> str:
    """What is wrong with an answer; empty if nothing is. What it names goes into the pool."""
    if answer.code in NEVER:
        return f"{answer.code.name}: {answer.message}"
    if answer.code is grpc.StatusCode.OK:
        return _problem_of_parts(rpc, answer, pool or Pool())
    if answer.code in EXPLAINED and rpc.is_ours and not answer.explained:
        return f"{answer.code.name} without details: {answer.message}"
    if answer.code is grpc.StatusCode.DEADLINE_EXCEEDED and answer.seconds >= PATIENCE_SECONDS:
        return f"no answer within {PATIENCE_SECONDS:g} s"
    return ""


def _problem_of_parts(rpc: Rpc, answer: Answer, pool: Pool) -> str:
    for part in answer.parts:
        try:
            pool.learn(rpc.parse_response(part))
        except DecodeError:
            return "an answer that is no message"
        except NotANumberError as error:
            return str(error)
    return ""


def odd_way(rng: random.Random) -> dict[str, Any]:
    """How to send a request other than as it should be; mostly nothing."""
    match rng.randrange(40):
        case 0:
            return {"timeout": rng.choice((0.0001, 0.001, 0.01, 0.05))}
        case 1 | 2:
            return {"cancel_after": rng.choice((0.0, 0.001, 0.005, 0.05))}
        case 3 | 4:
            return {"compression": rng.choice(("gzip", "deflate"))}
        case 5:
            return {"metadata": _metadata(rng)}
        case 6:
            return {"read": 1}
    return {}


def _metadata(rng: random.Random) -> tuple[tuple[str, str | bytes], ...]:
    return rng.choice(
        (
            (("unmask-client", "x" * 300),),
            (("unmask-client", "fuzz"), ("unmask-client", "other")),
            (("authorization", "Bearer " + "x" * 500),),
            (("authorization", "Basic !!"),),
            (("traceparent", "00-zz-zz-zz"), ("tracestate", "=" * 100)),
            (("x-request-id", "~ " * 20),),
            (("anything-bin", rng.randbytes(200)),),
            tuple((f"k{i}", "v" * 50) for i in range(60)),
        )
    )
