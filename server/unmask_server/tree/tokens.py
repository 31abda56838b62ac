"""Token sequences as the tree handles them: little-endian uint32, four bytes a token."""

from __future__ import annotations

import struct
from collections.abc import Sequence

TOKEN_BYTES = 4
MAX_TOKEN = 2**31 - 1
"""Ids fit int32 wherever they are kept in arrays."""


def pack(tokens: Sequence[int]) -> bytes:
    """Pack ids, each in [0, 2**31).

    Raises:
        ValueError: an id is outside; the message names the index and the id.

    """
    try:
        packed = struct.pack(f"<{len(tokens)}I", *tokens)
    except struct.error:
        packed = b""
    if len(packed) != TOKEN_BYTES * len(tokens) or (tokens and max(tokens) > MAX_TOKEN):
        for index, token in enumerate(tokens):
            if not isinstance(token, int) or not 0 <= token <= MAX_TOKEN:
                raise ValueError(f"token {index} is {token!r}, not an id in [0, 2**31)")
    return packed


def unpack(packed: bytes) -> tuple[int, ...]:
    """Undo `pack`."""
    return struct.unpack(f"<{len(packed) // TOKEN_BYTES}I", packed)


def token_at(packed: bytes, index: int) -> bytes:
    """Cut out the packed token at an index; empty beyond the end."""
    return packed[TOKEN_BYTES * index : TOKEN_BYTES * (index + 1)]


def tokens_in(packed: bytes) -> int:
    """Count the tokens."""
    return len(packed) // TOKEN_BYTES


def shared_tokens(left: bytes, right: bytes) -> int:
    """Count the tokens at the start that two packed sequences share.

    By bisection: comparing slices is so much faster than a loop over tokens that comparing some of
    them several times does not matter.
    """
    high = min(len(left), len(right)) // TOKEN_BYTES
    if left[: TOKEN_BYTES * high] == right[: TOKEN_BYTES * high]:
        return high
    low = 0
    while high - low > 1:
        middle = (low + high) // 2
        span = slice(TOKEN_BYTES * low, TOKEN_BYTES * middle)
        if left[span] == right[span]:
            low = middle
        else:
            high = middle
    return low
