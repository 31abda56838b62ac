"""Fixtures for all tests."""

from __future__ import annotations

import pytest

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests may be much slower on a busy machine."""
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(900))
