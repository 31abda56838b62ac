"""The database's clock: one for all servers, however wrong their own clocks are."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Float
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement


class now(FunctionElement[float]):  # noqa: N801 - reads like func.now()
    """Seconds since the epoch, as SQL, at the moment the statement runs.

    PostgreSQL's is its machine's clock; SQLite's that of the machine its file is on, where all its
    servers are, too.
    """

    type = Float()
    inherit_cache = True


@compiles(now, "postgresql")
def _on_postgresql(element: now, compiler: Any, **_: Any) -> str:
    return "EXTRACT(EPOCH FROM clock_timestamp())::float8"


@compiles(now, "sqlite")
def _on_sqlite(element: now, compiler: Any, **_: Any) -> str:
    # The Julian day of the epoch is 2440587.5.
    return "((julianday('now') - 2440587.5) * 86400.0)"
