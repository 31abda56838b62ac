"""What connections to a database may take."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """How many connections are used, and how long anything may take. Seconds; 0: for ever."""

    pool_size: int = 16
    """Connections kept open at most; as many again are opened under pressure."""
    connection: float = 30.0
    """For a free connection of the pool, and for a new one to be made."""
    statement: float = 120.0
    """For one statement (PostgreSQL)."""
    lock: float = 30.0
    """For what another transaction holds; on SQLite for the other writers of the file."""
    idle: float = 300.0
    """Between two statements of a transaction (PostgreSQL): the locks of a server that hangs, or
    whose machine is gone, are released then."""
    patience: float = 30.0
    """A transaction that meets transient errors is begun again for so long."""


DEFAULTS = Limits()

UNLIMITED = Limits(statement=0.0, lock=0.0, idle=0.0)
"""For what takes as long as it takes: a migration."""
