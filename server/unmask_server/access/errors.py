"""Why a call is not let in, or may not name what it names; the API gives each its code."""

from __future__ import annotations

from unmask_server.access.principals import Principal, Scope
from unmask_server.reasons import Reason


class CredentialsError(Exception):
    """A call without credentials that hold; never says anything that its sender does not know."""

    def __init__(self, reason: Reason, message: str) -> None:
        """Say why, for programs and for people."""
        super().__init__(message)
        self.reason = reason


class IssuerError(Exception):
    """The keys of the issuer of tokens cannot be had now."""

    reason = Reason.ISSUER_UNAVAILABLE


class ScopeError(Exception):
    """Who calls is known and may not do this."""

    def __init__(self, principal: Principal, needed: Scope) -> None:
        """Say what would be needed."""
        who = principal.name or "a client like this"
        super().__init__(
            f"this needs the scope {needed.label}, and {who} has {principal.scope.label}"
        )
        self.needed = needed


class SourceNotAllowed(Exception):  # noqa: N818 - named as what it becomes
    """A request names a directory or a host that the operator did not list."""

    def __init__(self, field: str, description: str, setting: str) -> None:
        """Say which field, what is wrong, and by which setting it could be allowed (or none)."""
        super().__init__(f"{field}: {description}")
        self.field = field
        self.description = description
        self.setting = setting
