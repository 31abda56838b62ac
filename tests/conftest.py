"""Fixtures for all tests."""

from __future__ import annotations

from tests.stores import (
    database,
    database_url,
    empty_url,
    postgresql_only,
    postgresql_shared_url,
    postgresql_url,
    sqlite_template,
)

__all__ = [
    "database",
    "database_url",
    "empty_url",
    "postgresql_only",
    "postgresql_shared_url",
    "postgresql_url",
    "sqlite_template",
]
