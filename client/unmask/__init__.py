"""Unmask: where does a teacher push a student towards success?

    import unmask

    with unmask.Client("localhost:50051") as client:
        answer = client.alignment(trajectory="trj-…", position=7, teachers=["big"])

Everything is loaded when it is first used, so that the import itself costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unmask.aio import AsyncClient
    from unmask.algorithms import format_algorithm, parse_algorithm
    from unmask.client import Client
    from unmask.embedded import LocalServer, local, serve
    from unmask.errors import (
        AlreadyExistsError,
        DeadlineExceededError,
        FailedPreconditionError,
        FieldViolation,
        GrowthFailedError,
        InvalidArgumentError,
        NotFoundError,
        PermissionDeniedError,
        ResourceExhaustedError,
        UnauthenticatedError,
        UnavailableError,
        UnmaskError,
    )
    from unmask.growth import AsyncGrowthHandle, GrowthHandle
    from unmask.requests.refs import node, question_target

__all__ = [
    "AlreadyExistsError",
    "AsyncClient",
    "AsyncGrowthHandle",
    "Client",
    "DeadlineExceededError",
    "FailedPreconditionError",
    "FieldViolation",
    "GrowthFailedError",
    "GrowthHandle",
    "InvalidArgumentError",
    "LocalServer",
    "NotFoundError",
    "PermissionDeniedError",
    "ResourceExhaustedError",
    "UnauthenticatedError",
    "UnavailableError",
    "UnmaskError",
    "format_algorithm",
    "local",
    "node",
    "parse_algorithm",
    "question_target",
    "serve",
]

_HOMES = {
    "AsyncClient": "aio",
    "AsyncGrowthHandle": "growth",
    "Client": "client",
    "GrowthHandle": "growth",
    "LocalServer": "embedded",
    "format_algorithm": "algorithms",
    "local": "embedded",
    "node": "requests.refs",
    "parse_algorithm": "algorithms",
    "question_target": "requests.refs",
    "serve": "embedded",
}
"""Where names live; those not listed are errors."""


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("unmask")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(f"{__name__}.{_HOMES.get(name, 'errors')}")
    value = globals()[name] = getattr(home, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
