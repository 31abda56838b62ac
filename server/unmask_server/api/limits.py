"""What one client may have at once, and how often it may ask."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from unmask_server.config import Settings
from unmask_server.reasons import Reason

REMEMBERED = 10_000
"""Clients whose rates are kept in mind: whoever has not asked for the longest time goes first."""
BUSY_SECONDS = 1.0
"""When to try again, where nobody knows when another call will end."""


class CallRefusedError(Exception):
    """A call that this server does not take, or does not finish, now."""

    reason: Reason

    def __init__(self, message: str, retry_seconds: float) -> None:
        """Say why, and in how many seconds it may go through."""
        super().__init__(message)
        self.retry_seconds = retry_seconds


class TooManyCallsError(CallRefusedError):
    """The client has as many calls running as it may."""

    reason = Reason.TOO_MANY_CALLS


class RateLimitedError(CallRefusedError):
    """The client asks more often than it may."""

    reason = Reason.RATE_LIMITED


class ServerStoppingError(CallRefusedError):
    """The server stops, or restarts; another one, or the next, will answer."""

    reason = Reason.SERVER_STOPPING


class CallTooLongError(Exception):
    """The call took longer than any call of its kind may."""


@dataclass(frozen=True, slots=True)
class ClientLimits:
    """Of one client; 0: none."""

    calls: int = 0
    """Calls with one answer that run at once."""
    streams: int = 0
    """Streams open at once."""
    rate: float = 0.0
    """Calls a second, in the long run."""
    burst: int = 0
    """Calls at once after a rest; at least 1 where there is a rate."""

    @classmethod
    def of(cls, settings: Settings) -> ClientLimits:
        """Those of a server."""
        return cls(
            settings.client_calls,
            settings.client_streams,
            settings.client_rate,
            settings.client_burst or max(1, round(2.0 * settings.client_rate)),
        )


class Buckets:
    """Tokens of each client, which come at a rate and add up to a burst. For one event loop."""

    def __init__(self, rate: float, burst: float, clock: Callable[[], float]) -> None:
        """All are full. `rate` in tokens a second; it is above 0."""
        self._rate = rate
        self._burst = float(burst)
        self._clock = clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def seconds(self, client: str) -> float:
        """Until the client has a token; 0: it has one."""
        return max(0.0, 1.0 - self._now(client)) / self._rate

    def take(self, client: str) -> None:
        """Take a token, or what there is of one."""
        left = self._now(client)
        self._left.pop(client, None)
        self._left[client] = (max(0.0, left - 1.0), self._clock())
        while len(self._left) > REMEMBERED:
            self._left.popitem(last=False)

    def _now(self, client: str) -> float:
        now = self._clock()
        left, at = self._left.get(client, (self._burst, now))
        return min(self._burst, left + (now - at) * self._rate)


class ClientCounts:
    """What each client has running, and how often it asks. For one event loop."""

    def __init__(self, limits: ClientLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._calls: Counter[str] = Counter()
        self._streams: Counter[str] = Counter()
        self._buckets = Buckets(limits.rate, limits.burst, clock) if limits.rate else None

    def enter(self, client: str, *, is_stream: bool) -> None:
        """Count a call in.

        Raises:
            TooManyCallsError: so many are running.
            RateLimitedError: it comes too soon.

        """
        limits = self._limits
        running, most, what, setting = (
            (self._streams, limits.streams, "streams open", "client_streams")
            if is_stream
            else (self._calls, limits.calls, "calls running", "client_calls")
        )
        if most and running[client] >= most:
            raise TooManyCallsError(
                f"this client has {most} {what}, as many as it may have at once here "
                f"({setting}); wait for one to end",
                BUSY_SECONDS,
            )
        if self._buckets is not None:
            if wait := self._buckets.seconds(client):
                raise RateLimitedError(
                    f"this client asks more often than {limits.rate:g} times a second, which is "
                    f"what it may here (client_rate); the next call is taken in {wait:.2g} s",
                    wait,
                )
            self._buckets.take(client)
        running[client] += 1

    def leave(self, client: str, *, is_stream: bool) -> None:
        """Count it out."""
        running = self._streams if is_stream else self._calls
        running[client] -= 1
        if not running[client]:
            del running[client]
