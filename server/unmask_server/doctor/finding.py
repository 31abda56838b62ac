"""What a check found."""

from __future__ import annotations

import enum
from dataclasses import asdict, dataclass
from typing import Any


class Level(enum.Enum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"
    """It works, but not for long, not well, or not as somebody seems to think."""
    PROBLEM = "problem"
    """It does not work."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    level: Level
    subject: str
    """What was looked at, in a word or two."""
    found: str
    """What it is like."""
    todo: str = ""
    """The one thing to do; empty where there is nothing to do."""

    def to_json(self) -> dict[str, Any]:
        """As an object."""
        return asdict(self) | {"level": self.level.value}


def ok(subject: str, found: str) -> Finding:
    """All is well."""
    return Finding(Level.OK, subject, found)


def warning(subject: str, found: str, todo: str) -> Finding:
    """Something may go wrong."""
    return Finding(Level.WARNING, subject, found, todo)


def problem(subject: str, found: str, todo: str) -> Finding:
    """Something is wrong."""
    return Finding(Level.PROBLEM, subject, found, todo)
