"""How tokens and names are kept in fewer bytes than the program handles them in.

Tokens are little-endian uint32 in memory. Stored, the first byte says how many bytes each token has
there (1 to 4: as many as the largest one needs), and the tokens follow. Long sequences are deflated
instead where that saves a tenth: `_DEFLATED` plus that number, the first token in four bytes, then
all tokens, byte plane by byte plane (the high bytes of tokens resemble each other more than the
bytes of one token do). So `HEAD_BYTES` bytes always hold the first token, which is all that a
look-up needs of an edge that it does not follow. Nothing stands for no tokens.
"""

from __future__ import annotations

import re
import zlib

from sqlalchemy import LargeBinary
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator

_TOKEN_BYTES = 4
_LONG = 64
"""Tokens from which on deflating is tried."""
_SAVED = 0.9
_LEVEL = 1
_DEFLATED = 0x10

_WIDTHS = {bytes((width,)): width for width in range(1, _TOKEN_BYTES + 1)}
_WIDTHS |= {bytes((_DEFLATED + width,)): _TOKEN_BYTES for width in range(1, _TOKEN_BYTES + 1)}
"""Bytes of the first token by the first byte of the sequence."""

HEAD_BYTES = 1 + _TOKEN_BYTES
"""Bytes of a stored sequence that tell its first token."""

UNREADABLE = b"\xff"
"""What a damaged sequence is read as: no sequence of tokens at all, so every check fails on it."""

_GROWTH = re.compile(r"gro-[0-9a-f]{24}")
_GROWTH_BYTES = 12


def encode_tokens(tokens: bytes) -> bytes:
    """Shorten packed tokens. The same tokens always give the same bytes."""
    if not tokens:
        return b""
    width = _TOKEN_BYTES
    while width > 1 and not tokens[width - 1 :: _TOKEN_BYTES].strip(b"\0"):
        width -= 1
    if len(tokens) >= _LONG * _TOKEN_BYTES:
        planes = b"".join([tokens[i::_TOKEN_BYTES] for i in range(width)])
        deflated = zlib.compress(planes, _LEVEL)
        if len(deflated) < _SAVED * len(planes):
            return bytes((_DEFLATED + width,)) + tokens[:_TOKEN_BYTES] + deflated
    if width == 1:
        return b"\x01" + tokens[::_TOKEN_BYTES]
    stored = bytearray(1 + len(tokens) // _TOKEN_BYTES * width)
    stored[0] = width
    for i in range(width):
        stored[1 + i :: width] = tokens[i::_TOKEN_BYTES]
    return bytes(stored)


def decode_tokens(stored: bytes) -> bytes:
    """Undo `encode_tokens`; `UNREADABLE` if nothing can have been encoded so."""
    if not stored:
        return b""
    width = stored[0] & 0x0F
    if stored[0] & ~0x0F not in (0, _DEFLATED) or not 1 <= width <= _TOKEN_BYTES:
        return UNREADABLE
    if stored[0] & _DEFLATED:
        try:
            planes = zlib.decompress(stored[HEAD_BYTES:])
        except zlib.error:
            return UNREADABLE
        count, rest = divmod(len(planes), width)
        columns = [planes[count * i : count * (i + 1)] for i in range(width)]
    else:
        count, rest = divmod(len(stored) - 1, width)
        columns = [stored[1 + i :: width] for i in range(width)]
    if rest or not count:
        return UNREADABLE
    tokens = bytearray(_TOKEN_BYTES * count)
    for i, column in enumerate(columns):
        tokens[i::_TOKEN_BYTES] = column
    if stored[0] & _DEFLATED and tokens[:_TOKEN_BYTES] != stored[1:HEAD_BYTES]:
        return UNREADABLE
    return bytes(tokens)


def first_token(stored: bytes) -> int | None:
    """The first token of a stored sequence, of which `HEAD_BYTES` bytes are enough.

    None if there is none, or nothing can have been encoded so.
    """
    width = _WIDTHS.get(stored[:1], 0)
    if not 1 <= width < len(stored):
        return None
    return int.from_bytes(stored[1 : 1 + width], "little")


def encode_growth(name: str) -> bytes:
    """Shorten the id of a growth: 12 bytes. Another name is kept as it is, marked by zeros."""
    if _GROWTH.fullmatch(name):
        return bytes.fromhex(name[4:])
    other = b"\0" + name.encode()
    return b"\0" + other if len(other) == _GROWTH_BYTES else other


def decode_growth(stored: bytes) -> str:
    """Undo `encode_growth`."""
    if len(stored) == _GROWTH_BYTES:
        return f"gro-{stored.hex()}"
    return stored.lstrip(b"\0").decode(errors="replace")


class PackedTokens(TypeDecorator[bytes]):
    """A column of packed tokens (uint32, little-endian), stored as `encode_tokens` has it."""

    impl = LargeBinary
    cache_ok = True

    def process_bind_param(self, value: bytes | None, dialect: Dialect) -> bytes | None:
        """Encode."""
        return None if value is None else encode_tokens(value)

    def process_result_value(self, value: bytes | None, dialect: Dialect) -> bytes | None:
        """Decode."""
        return None if value is None else decode_tokens(value)


class GrowthName(TypeDecorator[str]):
    """A column that names a growth by its id, stored as `encode_growth` has it."""

    impl = LargeBinary
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> bytes | None:
        """Encode."""
        return None if value is None else encode_growth(value)

    def process_result_value(self, value: bytes | None, dialect: Dialect) -> str | None:
        """Decode."""
        return None if value is None else decode_growth(value)
