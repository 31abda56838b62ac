"""Page tokens: opaque to clients, a keyset to the database."""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from google.protobuf.message import Message

from unmask_server.catalog.errors import InvalidArgument

DEFAULT_PAGE = 100
MAX_PAGE = 1000
PAGE_BYTES = 2**21
"""A page ends about here, full or not, so that every client can take it: most keep to gRPC's own
limit of 4 MiB."""

Item = TypeVar("Item")
Made = TypeVar("Made", bound=Message)


def page_size(size: int) -> int:
    """The size to use for the one that was asked."""
    return min(size or DEFAULT_PAGE, MAX_PAGE)


def cut_page(
    found: Sequence[Item],
    size: int,
    message: Callable[[Item], Made],
    key: Callable[[Item], tuple[Any, ...]],
) -> tuple[list[Made], str]:
    """The messages of a page, and the token of the next one; empty at the end.

    Args:
        found: what comes next, one more than `size` if there is more.
        size: messages of a page, at most; fewer if they are large, but one at least.
        message: of an item.
        key: of an item, see `encode_page`.

    """
    made: list[Made] = []
    filled = 0
    for item in found[:size]:
        one = message(item)
        filled += one.ByteSize()
        if made and filled > PAGE_BYTES:
            break
        made.append(one)
    if len(made) == len(found):
        return made, ""
    return made, encode_page(key(found[len(made) - 1]))


def encode_page(key: tuple[Any, ...]) -> str:
    """A token for the page after `key`."""
    return base64.urlsafe_b64encode(json.dumps(key).encode()).decode()


def decode_page(token: str) -> tuple[float, str] | None:
    """The key in a token; None for the first page."""
    if not token:
        return None
    try:
        created_at, last = json.loads(base64.urlsafe_b64decode(token.encode()))
        key = float(created_at), str(last)
        if not math.isfinite(key[0]):
            raise ValueError("no time")
        if not (key[1].isascii() and key[1].isprintable()):
            raise ValueError("no id")
    except (ValueError, TypeError, OverflowError, RecursionError, binascii.Error):
        raise InvalidArgument(
            "page_token", "not a token of this server; use next_page_token of the page before"
        ) from None
    return key
