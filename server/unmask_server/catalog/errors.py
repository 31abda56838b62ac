"""What can be wrong with a request, in words of the domain; the API gives each its code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unmask_server.reasons import Reason


class DomainError(Exception):
    """A request that cannot be granted, by no fault of the server."""


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """A field that is wrong."""

    field: str
    """Its path in the request."""
    description: str
    """What is wrong and what to do."""
    rule: str = ""
    """The rule of the contract that it breaks, e.g. `STRING_MAX_LEN`; empty: no stated one."""


class InvalidArgument(DomainError):  # noqa: N818 - named as the canonical code it becomes
    """Fields of the request are wrong, whatever the state of the server."""

    def __init__(self, field: str, description: str) -> None:
        """Say which field, as its path in the request, and what is wrong and what to do."""
        super().__init__(f"{field}: {description}")
        self.violations: Sequence[FieldViolation] = (FieldViolation(field, description),)

    @classmethod
    def of(cls, violations: Sequence[FieldViolation]) -> InvalidArgument:
        """Several at once, at least one."""
        first = violations[0]
        error = cls(first.field, first.description)
        error.violations = violations
        return error

    @property
    def field(self) -> str:
        """The first one's."""
        return self.violations[0].field

    @property
    def description(self) -> str:
        """The first one's."""
        return self.violations[0].description


class NotFound(DomainError):  # noqa: N818
    """There is no such thing."""

    def __init__(self, kind: str, id: str) -> None:
        """Say what was looked for."""
        super().__init__(f"there is no {kind} {id!r}; list them to see what there is")
        self.kind = kind
        self.id = id
        self.reason = Reason.not_found(kind)


class AlreadyExists(DomainError):  # noqa: N818
    """A name or id that the client chose belongs to something else."""

    def __init__(
        self, reason: Reason, field: str, description: str, *, kind: str, name: str
    ) -> None:
        """Say which field, and what is there already: its kind and its name or id."""
        super().__init__(f"{field}: {description}")
        self.reason = reason
        self.field = field
        self.description = description
        self.kind = kind
        self.name = name


class FailedPrecondition(DomainError):  # noqa: N818
    """The request is well formed, but these things do not go together."""

    def __init__(
        self, reason: Reason, message: str, *, field: str = "", **metadata: object
    ) -> None:
        """Say why, the field of the request that it is about, and what a program may want to know.

        Args:
            reason: one that comes with FAILED_PRECONDITION.
            message: what does not go together, and what to do.
            field: stands before the message. May be empty.
            metadata: values of the keys that `reason` lists.

        """
        super().__init__(f"{field}: {message}" if field else message)
        self.reason = reason
        self.message = message
        self.field = field
        self.metadata = {key: str(value) for key, value in metadata.items()}


class QuotaExceeded(DomainError):  # noqa: N818
    """A client has had what it may have for now."""

    def __init__(self, message: str, retry_seconds: float) -> None:
        """Say what is used up, and in how many seconds it will be free."""
        super().__init__(message)
        self.retry_seconds = retry_seconds


class BudgetSpent(DomainError):  # noqa: N818
    """A client has had what it may have in all; waiting does not help."""
