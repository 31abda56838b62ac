"""What can be wrong with a request, in words of the domain; the API gives each its code."""

from __future__ import annotations


class DomainError(Exception):
    """A request that cannot be granted, by no fault of the server."""


class InvalidArgument(DomainError):  # noqa: N818 - named as the canonical code it becomes
    """A field of the request is wrong, whatever the state of the server."""

    def __init__(self, field: str, reason: str) -> None:
        """Say which field, as its path in the request, and what is wrong and what to do."""
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


class NotFound(DomainError):  # noqa: N818
    """There is no such thing."""

    def __init__(self, kind: str, id: str) -> None:
        """Say what was looked for."""
        super().__init__(f"there is no {kind} {id!r}; list them to see what there is")
        self.kind = kind
        self.id = id


class AlreadyExists(DomainError):  # noqa: N818
    """A name or id that the client chose belongs to something else."""

    def __init__(self, field: str, reason: str) -> None:
        """Say which field."""
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


class FailedPrecondition(DomainError):  # noqa: N818
    """The request is well formed, but these things do not go together."""


class QuotaExceeded(DomainError):  # noqa: N818
    """A client has had what it may have for now."""

    def __init__(self, reason: str, retry_seconds: float) -> None:
        """Say what is used up, and in how many seconds it will be free."""
        super().__init__(reason)
        self.retry_seconds = retry_seconds
