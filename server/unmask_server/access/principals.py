"""Who is behind a call, and what they may do."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum


class Scope(IntEnum):
    """What a caller may do; each one includes those before it."""

    READ = 1
    """Ask for what is there, and for answers that are computed from it."""
    GROW = 2
    """Register, sample, grow and grade: what spends time and adds to the store."""
    ADMIN = 3
    """Take over another server's store as it is, and look into the server itself."""

    @classmethod
    def named(cls, name: str) -> Scope:
        """The scope of a name: `read`, `grow` or `admin`.

        Raises:
            ValueError: there is none.

        """
        try:
            return cls[name.upper()]
        except KeyError:
            raise ValueError(f"{name!r} is no scope; there are read, grow and admin") from None

    @property
    def label(self) -> str:
        """Its name: `read`, `grow` or `admin`."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Budget:
    """What a caller may have sampled; None: no limit."""

    rollouts_per_day: int | None = None
    tokens_per_day: int | None = None
    rollouts: int | None = None
    """In all."""
    tokens: int | None = None
    """In all."""


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated caller."""

    name: str
    """Unique among all ways to authenticate; limits, quotas and logs go by it."""
    scope: Scope
    budget: Budget = field(default_factory=Budget)
