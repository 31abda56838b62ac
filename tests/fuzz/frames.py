"""Attacks below gRPC: frames, headers, flow control and streams as no client writes them."""

from __future__ import annotations

import asyncio
import gzip
import random
import struct
from collections import Counter
from collections.abc import Awaitable, Callable

from hyperframe.frame import (
    Frame,
    GoAwayFrame,
    PingFrame,
    PriorityFrame,
    PushPromiseFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from tests.fuzz.http2 import (
    EMPTY_MESSAGE,
    GET_STATISTICS,
    PREFACE,
    Connection,
    headers,
    message,
)
from tests.fuzz.server import Watched

AT_ONCE = 8
FLOOD = 5_000
"""Frames of a flood."""
BOMB_MIB = 200
"""What a compressed message of a fifth of a megabyte becomes."""
_EXPORT = "/unmask.v1.CacheService/ExportCache"
_LIST = "/unmask.v1.TrajectoryService/ListTrajectories"

Rng = random.Random
Attack = Callable[[Connection, Rng], Awaitable[None]]


async def nonsense(at: Connection, rng: Rng) -> None:
    """Bytes instead of HTTP."""
    await at.send(
        rng.choice(
            (
                rng.randbytes(rng.choice((1, 100, 60_000))),
                b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
                b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(500),
                PREFACE[: rng.randrange(len(PREFACE))],
                PREFACE + rng.randbytes(1000),
            )
        )
    )


async def random_frames(at: Connection, rng: Rng) -> None:
    """Frames of any type, with any flags, of any length."""
    await at.greet()
    for _ in range(rng.randrange(1, 40)):
        size = rng.choice((0, 1, 4, 5, 8, 9, 300))
        told = size if rng.random() < 0.8 else rng.choice((0, 16_385, 2**24 - 1))
        kind, flags = rng.randrange(12), rng.randrange(256)
        stream = rng.choice((0, 1, 2, 3, 2**31 - 1, 2**31 + 1))
        await at.send(
            told.to_bytes(3) + struct.pack(">BBI", kind, flags, stream) + rng.randbytes(size)
        )


async def many_headers(at: Connection, rng: Rng) -> None:
    """A megabyte of headers in one block."""
    await at.greet()
    # Literals without Huffman's code, which takes seconds to write.
    plain = b"".join(
        b"\x00\x04" + f"k{i:03}".encode() + b"\x7f\xe9\x06" + b"v" * 1000 for i in range(1000)
    )
    block = at.encoder.encode(headers()) + plain
    await at.send(at.block(1, block[:16_000], whole=False))
    for start in range(16_000, len(block), 16_000):
        last = start + 16_000 >= len(block)
        if not await at.send(at.more(1, block[start : start + 16_000], whole=last)):
            return


async def header_bomb(at: Connection, rng: Rng) -> None:
    """A long header that is referred to ten thousand times by one byte."""
    await at.greet()
    first = at.encoder.encode([*headers(), ("bomb", "b" * 3900)])
    await at.send(at.block(1, first + b"\xbe" * 10_000, end=True))


async def broken_headers(at: Connection, rng: Rng) -> None:
    """Header blocks that cannot be decoded."""
    await at.greet()
    block = rng.choice(
        (rng.randbytes(50), b"\xff\xff\xff\xff\xff\xff\x7f", b"\x3f\xe1\xff\xff\x7f")
    )
    await at.send(at.block(1, block, end=True))


async def continuation_flood(at: Connection, rng: Rng) -> None:
    """A header block that never ends."""
    await at.greet()
    await at.send(at.block(1, at.encoder.encode(headers()), whole=False))
    part = at.more(1, rng.choice((b"", b"\x00\x01a\x01b" * 100))).serialize()
    for _ in range(FLOOD // 50):
        if not await at.send(part * 50):
            return


async def rapid_reset(at: Connection, rng: Rng) -> None:
    """Calls that are cancelled as soon as they are made."""
    await at.greet()
    for stream in range(1, 2 * FLOOD // 5, 2):
        call = at.call(stream, end=False), at.data(stream, EMPTY_MESSAGE), at.reset(stream)
        if not await at.send(*call):
            return


async def ping_flood(at: Connection, rng: Rng) -> None:
    """Pings whose answers nobody reads."""
    await at.greet()
    await _flood(at, PingFrame(0, opaque_data=bytes(8)))


async def settings_flood(at: Connection, rng: Rng) -> None:
    """The same of settings."""
    await at.greet()
    await _flood(at, SettingsFrame(0, settings={4: rng.randrange(65_536)}))


async def empty_data_flood(at: Connection, rng: Rng) -> None:
    """A stream of frames without a byte in them."""
    await at.greet()
    await at.send(at.call(1))
    await _flood(at, at.data(1, b"", end=False))


async def odd_settings(at: Connection, rng: Rng) -> None:
    """Settings out of their ranges."""
    values = (0, 1, 2, 16_383, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
    await at.greet({rng.choice((1, 2, 3, 4, 5, 6, 99)): rng.choice(values) for _ in range(4)})
    await at.send(at.call(1), at.data(1, EMPTY_MESSAGE))


async def window_games(at: Connection, rng: Rng) -> None:
    """Windows that overflow, or grow by nothing."""
    await at.greet()
    await at.send(at.call(1))
    stream = rng.choice((0, 1, 7))
    increments = rng.choice(((2**31 - 1, 2**31 - 1), (1,) * 2000))
    await at.send(*(WindowUpdateFrame(stream, window_increment=n) for n in increments))
    await at.send(b"\0\0\4\x08\0" + struct.pack(">II", stream, 0))
    await at.send(at.data(1, EMPTY_MESSAGE))


async def closed_window(at: Connection, rng: Rng) -> None:
    """Long answers that the client takes nothing of."""
    await at.greet({4: rng.choice((0, 1))})
    for stream in range(1, 101, 2):
        path = rng.choice((_EXPORT, _LIST))
        await at.send(at.call(stream, headers(path)), at.data(stream, EMPTY_MESSAGE))
    await asyncio.sleep(0.3)


async def half_open(at: Connection, rng: Rng) -> None:
    """Calls whose request never comes, or never ends."""
    await at.greet()
    for stream in range(1, 401, 2):
        await at.send(at.call(stream))
        if rng.random() < 0.5:
            await at.send(at.data(stream, message(b"\n", length=1000), end=False))
    await asyncio.sleep(0.3)


async def long_message(at: Connection, rng: Rng) -> None:
    """A message that says it is as long as can be, and begins."""
    await at.greet()
    length = rng.choice((2**32 - 1, 2**31, 2 * 2**20))
    await at.send(at.call(1), at.data(1, message(bytes(16_000), length=length), end=False))
    await asyncio.sleep(0.1)
    await at.send(at.data(1, bytes(16_000), end=rng.random() < 0.5))


async def compressed(at: Connection, rng: Rng) -> None:
    """Messages that say they are compressed."""
    await at.greet()
    encoding = rng.choice(("gzip", "deflate", "identity", "br", "gzip,gzip", ""))
    body = rng.choice((rng.randbytes(100), gzip.compress(b""), gzip.compress(b"\n\0")[:-4]))
    given = headers(grpc_encoding=encoding)
    await at.send(at.call(1, given), at.data(1, message(body, flag=rng.choice((1, 1, 2, 255)))))


async def compressed_bomb(at: Connection, rng: Rng) -> None:
    """Few bytes that become many."""
    body = message(_bomb(), flag=1)
    await at.greet()
    await at.send(at.call(1, headers(_LIST, grpc_encoding="gzip")))
    for start in range(0, len(body), 16_000):
        end = start + 16_000 >= len(body)
        if not await at.send(at.data(1, body[start : start + 16_000], end=end)):
            return


async def odd_messages(at: Connection, rng: Rng) -> None:
    """None, several, cut off, or more than was said."""
    await at.greet()
    body = rng.choice(
        (b"", EMPTY_MESSAGE * 2, EMPTY_MESSAGE[:3], message(b"\n\0", length=1), EMPTY_MESSAGE * 500)
    )
    await at.send(at.call(1), at.data(1, body))


async def odd_headers(at: Connection, rng: Rng) -> None:
    """Calls that are no calls of gRPC, or not quite."""
    await at.greet()
    given = rng.choice(
        (
            headers(content_type="text/html"),
            headers(content_type="application/grpc+json"),
            headers(content_type="application/grpc-web+proto"),
            headers(content_type=None),
            headers(method="GET"),
            headers(method="DELETE"),
            headers(te=None),
            headers(scheme=None),
            headers(path=None),
            headers(authority=None),
            headers(""),
            headers("/"),
            headers("unmask.v1.CacheService/GetStatistics"),
            headers("/unmask.v1.CacheService/Nothing"),
            headers("/unmask.v1.CacheService/GetStatistics/x"),
            headers("/" + "x" * 6000),
            headers(grpc_timeout="99999999H"),
            headers(grpc_timeout="0n"),
            headers(grpc_timeout="-1S"),
            headers(grpc_timeout="soon"),
            headers(grpc_accept_encoding="br"),
            headers(grpc_encoding="snappy"),
            headers(grpc_message_type="x" * 3000),
            headers(connection="close"),
            [*headers(), (":path", GET_STATISTICS)],
            [*headers(), ("X-Upper", "1")],
            [*headers(), ("broken-bin", "%%%")],
            [*headers(), ("unmask-client", "\x01\xff")],
            [("te", "trailers"), *headers()],
        )
    )
    await at.send(at.call(1, given), at.data(1, EMPTY_MESSAGE))


async def odd_streams(at: Connection, rng: Rng) -> None:
    """Frames where they may not be."""
    await at.greet()
    far = at.call(9), at.call(3)
    parts: tuple[Frame, ...] = rng.choice(
        (
            (at.data(5, EMPTY_MESSAGE),),
            (at.call(2), at.data(2, EMPTY_MESSAGE)),
            far,
            (at.call(1, end=True), at.data(1, EMPTY_MESSAGE)),
            (PriorityFrame(1, depends_on=1, stream_weight=0, exclusive=True),),
            (PushPromiseFrame(1, promised_stream_id=2, data=at.encoder.encode(headers())),),
            (GoAwayFrame(0, last_stream_id=0, error_code=0), at.call(1, end=True)),
            (at.reset(77),),
            (at.call(1), at.call(1, end=True)),
        )
    )
    await at.send(*parts)


async def _flood(at: Connection, frame: Frame) -> None:
    part = frame.serialize() * 50
    for _ in range(FLOOD // 50):
        if not await at.send(part):
            return


def _bomb() -> bytes:
    global _made
    if not _made:
        _made = gzip.compress(bytes(BOMB_MIB * 2**20), 9)
    return _made


_made = b""

ATTACKS: dict[str, Attack] = {
    "bytes that are no HTTP/2": nonsense,
    "random frames": random_frames,
    "a megabyte of headers": many_headers,
    "a header block that refers to itself 10,000 times": header_bomb,
    "headers that cannot be decoded": broken_headers,
    "CONTINUATION without end": continuation_flood,
    "calls reset at once": rapid_reset,
    "PING flood": ping_flood,
    "SETTINGS flood": settings_flood,
    "empty DATA without end": empty_data_flood,
    "settings out of range": odd_settings,
    "windows that overflow": window_games,
    "answers that are not taken": closed_window,
    "requests that never end": half_open,
    "a message of 4 GiB, announced": long_message,
    "compressed, or not": compressed,
    "a compressed bomb": compressed_bomb,
    "no message, several, parts": odd_messages,
    "headers of other protocols": odd_headers,
    "frames where they may not be": odd_streams,
}


async def attack(server: Watched, seed: int, connections: int) -> Counter[tuple[str, str]]:
    """So many connections, each attack as often as the others; how each ended."""
    ends: Counter[tuple[str, str]] = Counter()
    names = list(ATTACKS)
    turns = iter(range(connections))

    async def work() -> None:
        for i in turns:
            name = names[i % len(names)]
            at = await Connection.open(server.socket)
            try:
                await ATTACKS[name](at, random.Random(f"{seed}/{name}/{i}"))
                ends[name, await at.end()] += 1
            finally:
                await at.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(work())
    return ends
