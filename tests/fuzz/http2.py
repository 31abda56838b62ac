"""HTTP/2 by hand: a connection that may say anything."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpack import Decoder, Encoder
from hpack.exceptions import HPACKError
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    HeadersFrame,
    RstStreamFrame,
    SettingsFrame,
)

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
GET_STATISTICS = "/unmask.v1.CacheService/GetStatistics"
EMPTY_MESSAGE = bytes(5)
_HEAD = 9
_RST, _GOAWAY, _HEADERS = 3, 7, 1
_CODES = (
    "NO_ERROR",
    "PROTOCOL_ERROR",
    "INTERNAL_ERROR",
    "FLOW_CONTROL_ERROR",
    "SETTINGS_TIMEOUT",
    "STREAM_CLOSED",
    "FRAME_SIZE_ERROR",
    "REFUSED_STREAM",
    "CANCEL",
    "COMPRESSION_ERROR",
    "CONNECT_ERROR",
    "ENHANCE_YOUR_CALM",
    "INADEQUATE_SECURITY",
    "HTTP_1_1_REQUIRED",
)


def headers(path: str = GET_STATISTICS, **changed: str | None) -> list[tuple[str, str]]:
    """Of a call; `changed` replaces or, if None, leaves out."""
    usual = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "localhost",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    given = usual | {_name(key): value for key, value in changed.items()}
    return [(key, value) for key, value in given.items() if value is not None]


def _name(key: str) -> str:
    return f":{key}" if key in ("method", "scheme", "path", "authority") else key.replace("_", "-")


def message(data: bytes, flag: int = 0, length: int | None = None) -> bytes:
    """A gRPC message as it is framed."""
    return struct.pack(">BI", flag, len(data) if length is None else length) + data


@dataclass
class Connection:
    """To a server's socket."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    encoder: Encoder = field(default_factory=Encoder)

    @classmethod
    async def open(cls, socket: Path) -> Connection:
        return cls(*await asyncio.open_unix_connection(socket))

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()

    async def send(self, *parts: bytes | Frame) -> bool:
        """Whether the server still takes what is sent."""
        for part in parts:
            self.writer.write(part if isinstance(part, bytes) else part.serialize())
        try:
            async with asyncio.timeout(1.0):
                await self.writer.drain()
        except (OSError, TimeoutError):
            return False
        return True

    async def greet(self, settings: dict[int, int] | None = None) -> None:
        await self.send(PREFACE, SettingsFrame(0, settings=settings or {}))

    def call(self, stream: int, given: list[tuple[str, str]] | None = None, **flags: bool) -> Frame:
        """The headers that begin a call; `end` ends the stream with them."""
        return self.block(stream, self.encoder.encode(given or headers()), **flags)

    def block(
        self, stream: int, data: bytes, *, end: bool = False, whole: bool = True
    ) -> HeadersFrame:
        frame = HeadersFrame(stream, data)
        if whole:
            frame.flags.add("END_HEADERS")
        if end:
            frame.flags.add("END_STREAM")
        return frame

    def more(self, stream: int, data: bytes, *, whole: bool = False) -> ContinuationFrame:
        frame = ContinuationFrame(stream, data)
        if whole:
            frame.flags.add("END_HEADERS")
        return frame

    def data(self, stream: int, data: bytes, *, end: bool = True) -> DataFrame:
        frame = DataFrame(stream, data)
        if end:
            frame.flags.add("END_STREAM")
        return frame

    def reset(self, stream: int, code: int = 8) -> RstStreamFrame:
        return RstStreamFrame(stream, error_code=code)

    async def end(self, seconds: float = 0.5) -> str:
        """What comes back: the worst of statuses, resets, a GOAWAY, or the connection's end."""
        received = bytearray()
        closed = False
        try:
            async with asyncio.timeout(seconds):
                while part := await self.reader.read(65_536):
                    received += part
                closed = True
        except TimeoutError:
            pass
        except OSError:
            closed = True
        ends = dict.fromkeys(_ends(bytes(received)))
        if closed and not any(end.startswith("GOAWAY") for end in ends):
            ends["closed"] = None
        return ", ".join(sorted(ends)[:4]) or "left open"


def _ends(received: bytes) -> Iterator[str]:
    decoder = Decoder()
    place = 0
    while place + _HEAD <= len(received):
        length = int.from_bytes(received[place : place + 3])
        kind, body = received[place + 3], received[place + _HEAD : place + _HEAD + length]
        place += _HEAD + length
        if kind == _GOAWAY and len(body) >= 8:
            yield f"GOAWAY {_code(body[4:8])}"
        elif kind == _RST and len(body) == 4:
            yield f"RST_STREAM {_code(body)}"
        elif kind == _HEADERS:
            yield from _statuses(decoder, body)


def _statuses(decoder: Decoder, body: bytes) -> Iterator[str]:
    try:
        found: dict[str, Any] = dict(decoder.decode(body))
    except HPACKError:
        return
    if "grpc-status" in found:
        yield f"grpc-status {found['grpc-status']}"
    elif found.get(":status", "200") != "200":
        yield f"HTTP {found[':status']}"


def _code(data: bytes) -> str:
    number = int.from_bytes(data)
    return _CODES[number] if number < len(_CODES) else str(number)
