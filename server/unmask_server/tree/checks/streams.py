"""Reading what does not fit into memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Connection

from unmask_server.database.rows import AnyRow

_ROWS = 1000


def stream(connection: Connection, statement: Any) -> Iterator[AnyRow]:
    """The rows of a query, some of them at a time: by a server-side cursor on PostgreSQL."""
    yield from connection.execute(statement, execution_options={"yield_per": _ROWS})


def chunks(connection: Connection, statement: Any) -> Iterator[Sequence[AnyRow]]:
    """As `stream`, some rows together."""
    found = connection.execute(statement, execution_options={"yield_per": _ROWS})
    yield from found.partitions()
