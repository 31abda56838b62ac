"""Both stores."""

from __future__ import annotations

import pytest

from tests.stores import STORES


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest) -> str:
    return str(request.param)
