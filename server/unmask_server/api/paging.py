"""Page tokens: opaque to clients, a keyset to the database."""

from __future__ import annotations

import base64
import binascii
import json
import math
from typing import Any

from unmask_server.catalog.errors import InvalidArgument

DEFAULT_PAGE = 100
MAX_PAGE = 1000


def page_size(size: int) -> int:
    """The size to use for the one that was asked."""
    return min(size or DEFAULT_PAGE, MAX_PAGE)


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
