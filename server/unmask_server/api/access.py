"""Who may make which call: asked before anything else looks at it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from typing import Any

import grpc
import structlog
from grpc_status import rpc_status

from unmask_server.access.errors import CredentialsError, ScopeError
from unmask_server.access.principals import Budget, Principal
from unmask_server.access.verifiers import Verifier
from unmask_server.api.callers import authenticated
from unmask_server.api.errors import status, status_of
from unmask_server.api.scopes import needed
from unmask_server.reasons import Reason

log = structlog.get_logger(__name__)

_NO_BUDGET = Budget()
_budget: ContextVar[Budget] = ContextVar("unmask_budget", default=_NO_BUDGET)
_SCHEME = "bearer "
_LONGEST = 16_384
"""Characters of credentials; tokens of identity providers have a few thousand."""


def budget_of_caller() -> Budget:
    """What may be sampled for who makes this call; to be asked in the call's own task."""
    return _budget.get()


class AccessInterceptor(grpc.aio.ServerInterceptor):
    """Lets calls through whose credentials hold and whose scope is enough.

    It stands before all who parse or answer, so a refused call's message is not even read.
    """

    def __init__(self, verifiers: Sequence[Verifier]) -> None:
        self._verifiers = verifiers

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """The call's handler, or one that refuses."""
        scope = needed(handler_call_details.method)
        if scope is None:
            return await continuation(handler_call_details)
        try:
            principal = await self._who(handler_call_details.invocation_metadata)
            authenticated.set(principal.name)
            _budget.set(principal.budget)
            if principal.scope < scope:
                raise ScopeError(principal, scope)
        except Exception as error:
            return _refusing(error, handler_call_details.method)
        return await continuation(handler_call_details)

    async def _who(self, metadata: Any) -> Principal:
        given = [value for key, value in metadata or () if key == "authorization"]
        if len(given) != 1:
            problem = "gives none" if not given else "gives several"
            raise CredentialsError(
                Reason.CREDENTIALS_MISSING,
                f"say who calls: authorization: Bearer TOKEN (this {problem})",
            )
        value = given[0] if isinstance(given[0], str) else given[0].decode("ascii", "replace")
        if not value.lower().startswith(_SCHEME) or len(value) > _LONGEST:
            raise CredentialsError(
                Reason.CREDENTIALS_INVALID, "authorization: must be `Bearer TOKEN`"
            )
        credentials = value[len(_SCHEME) :].strip()
        for verifier in self._verifiers:
            if verifier.knows_form(credentials):
                return await verifier.verify(credentials)
        raise CredentialsError(
            Reason.CREDENTIALS_INVALID, "this is no token of a kind that the server takes"
        )


def _refusing(error: Exception, method: str) -> grpc.RpcMethodHandler[Any, Any]:
    found = status_of(error)
    if found is None:
        log.error("unforeseen error", method=method, exc_info=error)
        found = status(Reason.UNFORESEEN, "an unforeseen error; see the server's log")
    told = rpc_status.to_status(found)

    async def refuse(_: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        await context.abort_with_status(told)

    # Of this kind whatever the method is: it reads no message.
    return grpc.stream_stream_rpc_method_handler(refuse)
