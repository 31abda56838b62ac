"""The server of the end-to-end tests."""

from tests.e2e.conftest import models, world

__all__ = ["models", "world"]
