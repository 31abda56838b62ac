"""Fixtures for all tests."""

from __future__ import annotations

import os
from contextlib import suppress

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

# The environment that holds TRL and verl has none.
with suppress(ImportError):
    from hypothesis import settings

    # How long an example takes says how busy the machine is.
    settings.register_profile(
        "busy", settings.get_profile(settings.get_current_profile_name()), deadline=None
    )
    settings.load_profile("busy")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests may be much slower on a busy machine."""
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(900))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Half as many again as there are cores: many tests wait for servers of their own."""
    cores = os.cpu_count() or 1
    return cores + cores // 2
