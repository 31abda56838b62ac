"""Counts of calls, in plain numbers: kept on the event loop, read when metrics are asked for.

An answer from memory takes a fraction of a millisecond; locks and labels would be felt there.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator

import grpc
from prometheus_client import Metric
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.registry import Collector

from unmask_server.telemetry import metrics

OK = grpc.StatusCode.OK
UNKNOWN = "unknown"
"""The service and the method of calls of methods that there are not."""

_LABELS = ("grpc_type", "grpc_service", "grpc_method")
_LES = (*map(str, metrics.SECONDS), "+Inf")

# The names are those of go-grpc-middleware, so that dashboards made for it work.
_STARTED, _HANDLED, _SECONDS, _FLIGHT, _RECEIVED, _SENT = DESCRIBED = (
    metrics.Described("grpc_server_started_total", "counter", _LABELS, "Calls that began."),
    metrics.Described(
        "grpc_server_handled_total", "counter", (*_LABELS, "grpc_code"),
        "Calls that ended, by status code.",
    ),
    metrics.Described(
        "grpc_server_handling_seconds", "histogram", _LABELS,
        "From a call's request to the end of its answer.",
    ),
    metrics.Described("unmask_rpcs_in_flight", "gauge", (), "Calls under way."),
    metrics.Described(
        "unmask_rpc_received_bytes_total", "counter", (),
        "Requests of this API, serialised, before compression.",
    ),
    metrics.Described(
        "unmask_rpc_sent_bytes_total", "counter", (),
        "Answers of this API, serialised, before compression.",
    ),
)  # fmt: skip


class MethodCounts:
    """What is counted of one method."""

    __slots__ = ("buckets", "codes", "kind", "received", "seconds", "sent", "started", "where")

    def __init__(self, service: str, method: str, kind: str) -> None:
        """Count nothing yet.

        Args:
            service: its full name.
            method: its name.
            kind: unary, server_stream, client_stream or bidi_stream.

        """
        self.where = (kind, service, method)
        self.started = 0
        # There from the start: of a series that begins with 1, Prometheus sees no increase.
        self.codes = {OK: 0, grpc.StatusCode.INTERNAL: 0}
        self.buckets = [0] * len(_LES)
        self.seconds = 0.0
        self.received = 0
        self.sent = 0

    def end(self, code: grpc.StatusCode, seconds: float) -> None:
        """Count a call that ended."""
        self.codes[code] = self.codes.get(code, 0) + 1
        self.seconds += seconds
        self.buckets[bisect_left(metrics.SECONDS, seconds)] += 1


class RpcCounts(Collector):
    """All methods' counts, as metrics."""

    def __init__(self) -> None:
        self._methods: dict[str, MethodCounts] = {}
        self.unknown = self.method(UNKNOWN, UNKNOWN, "unary")
        """Of methods that there are not, under one label whatever clients think of."""

    def method(self, service: str, method: str, kind: str) -> MethodCounts:
        """One method's counts, which begin with the process."""
        name = f"/{service}/{method}"
        if name not in self._methods:
            self._methods[name] = MethodCounts(service, method, kind)
        return self._methods[name]

    def collect(self) -> Iterable[Metric]:
        """The families, as things are."""
        return list(self._families(list(self._methods.values())))

    def _families(self, methods: list[MethodCounts]) -> Iterator[Metric]:
        started = CounterMetricFamily(_STARTED.name, _STARTED.what, labels=_STARTED.labels)
        handled = CounterMetricFamily(_HANDLED.name, _HANDLED.what, labels=_HANDLED.labels)
        seconds = HistogramMetricFamily(_SECONDS.name, _SECONDS.what, labels=_SECONDS.labels)
        flight = 0
        for one in methods:
            ended = 0
            for code, count in list(one.codes.items()):
                handled.add_metric([*one.where, _camel(code)], float(count))
                ended += count
            flight += one.started - ended
            started.add_metric(one.where, float(one.started))
            if ended:
                # Many series, and many methods are never called.
                seconds.add_metric(one.where, _cumulative(one.buckets), one.seconds)
        yield from (started, handled, seconds)
        yield GaugeMetricFamily(_FLIGHT.name, _FLIGHT.what, value=float(flight))
        for told, value in (
            (_RECEIVED, sum(one.received for one in methods)),
            (_SENT, sum(one.sent for one in methods)),
        ):
            yield CounterMetricFamily(told.name, told.what, value=float(value))


def _cumulative(buckets: list[int]) -> list[tuple[str, float]]:
    total, found = 0, []
    for le, count in zip(_LES, buckets, strict=True):
        total += count
        found.append((le, float(total)))
    return found


def _camel(code: grpc.StatusCode) -> str:
    """As go-grpc-middleware labels it."""
    if code is grpc.StatusCode.CANCELLED:
        return "Canceled"
    return code.name if code is OK else code.name.title().replace("_", "")


COUNTS = RpcCounts()
metrics.REGISTRY.register(COUNTS)
