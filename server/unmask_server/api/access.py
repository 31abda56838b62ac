"""Who may make which call: asked before anything else looks at it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from contextvars import ContextVar
from typing import Any

import grpc
import structlog
from grpc_status import rpc_status

from unmask_server.access.errors import CredentialsError, ScopeError
from unmask_server.access.principals import Budget, Principal, Scope
from unmask_server.access.verifiers import Verifier
from unmask_server.api.callers import address_of, authenticated, certified
from unmask_server.api.errors import status, status_of
from unmask_server.api.limits import Buckets, RateLimitedError
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


FAILURES_SECONDS = 10.0
"""Failures of so long an address may have at once after a rest."""


class AccessInterceptor(grpc.aio.ServerInterceptor):
    """Lets calls through whose credentials hold and whose scope is enough.

    It stands before all who read, parse or answer: what it wraps are handlers of streams of
    requests (see `CallGuard`), so a refused call's message is not even read.
    """

    def __init__(
        self,
        verifiers: Sequence[Verifier],
        failures: float = 0.0,
        certified_scope: Scope | None = None,
    ) -> None:
        """Ask some verifiers.

        Args:
            verifiers: asked in this order.
            failures: credentials a second from one address that may fail; 0: any number.
            certified_scope: what TLS clients may do, all of whom have a certificate; then there are
                no verifiers.

        """
        self._verifiers = verifiers
        self._certified_scope = certified_scope
        self._failures = (
            Buckets(failures, max(1.0, failures * FAILURES_SECONDS), time.monotonic)
            if failures
            else None
        )
        self._wrapped: dict[str, tuple[Any, Any]] = {}

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wrap the method's handler, once."""
        method = handler_call_details.method
        handler: Any = await continuation(handler_call_details)
        scope = needed(method)
        if scope is None:
            return handler  # type: ignore[no-any-return]
        if handler is None:
            # Nothing is kept for whatever clients think of.
            return grpc.stream_stream_rpc_method_handler(self._unknown(scope, method))
        known = self._wrapped.get(method)
        if known is None or known[0] is not handler:
            known = self._wrapped[method] = (handler, self._wrap(handler, scope, method))
        return known[1]  # type: ignore[no-any-return]

    def _wrap(self, handler: Any, scope: Scope, method: str) -> Any:
        async def unary(requests: Any, context: Any) -> Any:
            await self._admit(scope, method, context)
            return await handler.stream_unary(requests, context)

        async def stream(requests: Any, context: Any) -> AsyncIterator[Any]:
            await self._admit(scope, method, context)
            async with aclosing(handler.stream_stream(requests, context)) as responses:
                async for response in responses:
                    yield response

        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(
                stream, handler.request_deserializer, handler.response_serializer
            )
        return grpc.stream_unary_rpc_method_handler(
            unary, handler.request_deserializer, handler.response_serializer
        )

    def _unknown(self, scope: Scope, method: str) -> Any:
        async def unknown(_: Any, context: Any) -> None:
            await self._admit(scope, method, context)
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")

        return unknown

    async def _admit(self, scope: Scope, method: str, context: Any) -> None:
        """Let a call go on, or end it."""
        try:
            principal = await self._who(context)
            authenticated.set(principal.name)
            _budget.set(principal.budget)
            if principal.scope < scope:
                raise ScopeError(principal, scope)
        except Exception as error:
            found = status_of(error)
            if found is None:
                log.error("unforeseen error", method=method, exc_info=error)
                found = status(Reason.UNFORESEEN, "an unforeseen error; see the server's log")
            await context.abort_with_status(rpc_status.to_status(found))

    async def _who(self, context: Any) -> Principal:
        if self._certified_scope is not None:
            return _certified(context, self._certified_scope)
        credentials = _credentials(context.invocation_metadata())
        for verifier in self._verifiers:
            if verifier.knows_form(credentials):
                return await self._verified(verifier, credentials, address_of(context.peer()))
        raise CredentialsError(
            Reason.CREDENTIALS_INVALID, "this is no token of a kind that the server takes"
        )

    async def _verified(self, verifier: Verifier, credentials: str, address: str) -> Principal:
        failures = self._failures
        if failures is None:
            return await verifier.verify(credentials)
        if (wait := failures.seconds(address)) and not verifier.held(credentials):
            raise RateLimitedError(
                "credentials from this address failed more often than they may here "
                f"(client_failures); others are looked at in {wait:.2g} s",
                wait,
            )
        try:
            return await verifier.verify(credentials)
        except CredentialsError as error:
            # A forgotten client whose token has run out shuts nobody else out.
            if error.reason is Reason.CREDENTIALS_INVALID:
                failures.take(address)
            raise


def _certified(context: Any, scope: Scope) -> Principal:
    """Who has a certificate, or comes by a Unix socket, which its file's permissions guard."""
    if context.auth_context().get("transport_security_type") != [b"ssl"]:
        return Principal("", Scope.ADMIN)
    return Principal(certified(context), scope)


def _credentials(metadata: Any) -> str:
    """The token of a call. Raises CredentialsError if there is none."""
    given = [value for key, value in metadata or () if key == "authorization"]
    if len(given) != 1:
        problem = "gives none" if not given else "gives several"
        raise CredentialsError(
            Reason.CREDENTIALS_MISSING,
            f"say who calls: authorization: Bearer TOKEN (this {problem})",
        )
    value = given[0] if isinstance(given[0], str) else given[0].decode("ascii", "replace")
    if not value.lower().startswith(_SCHEME) or len(value) > _LONGEST:
        raise CredentialsError(Reason.CREDENTIALS_INVALID, "authorization: must be `Bearer TOKEN`")
    return value[len(_SCHEME) :].strip()
