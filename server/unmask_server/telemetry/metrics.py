"""Every metric that is counted where something happens, by name.

Whoever does the work says so here, as in `metrics.ROLLOUTS_STORED.inc(3)`: about a microsecond,
from any thread. What is looked up when somebody asks, instead, is in `telemetry.gauges`, and calls
are counted by `telemetry.rpcs`. No label has a value that clients choose: no ids, no names.

`docs/observability.md` has the table of all of them, made by `telemetry.table`.
"""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

# A time of creation for each series doubles what is scraped.
disable_created_metrics()  # type: ignore[no-untyped-call]

REGISTRY = CollectorRegistry(auto_describe=True)
"""All metrics of this process."""

SECONDS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
)  # fmt: skip
"""From an answer out of memory to a batch of long rollouts."""


@dataclass(frozen=True, slots=True)
class Described:
    """A metric, for people."""

    name: str
    kind: str
    """counter, gauge or histogram."""
    labels: tuple[str, ...]
    what: str


DESCRIBED: list[Described] = []
"""All of this program's, in the order of the code."""


def _counter(name: str, what: str, labels: tuple[str, ...] = ()) -> Counter:
    DESCRIBED.append(Described(name, "counter", labels, what))
    return Counter(name, what, labels, registry=REGISTRY)


def _gauge(name: str, what: str, labels: tuple[str, ...] = ()) -> Gauge:
    DESCRIBED.append(Described(name, "gauge", labels, what))
    return Gauge(name, what, labels, registry=REGISTRY)


def _seconds(name: str, what: str, labels: tuple[str, ...] = ()) -> Histogram:
    DESCRIBED.append(Described(name, "histogram", labels, what))
    return Histogram(name, what, labels, registry=REGISTRY, buckets=SECONDS)


# ----------------------------------------------------------------------------------------- calls
ERRORS = _counter(
    "unmask_errors_total", "Refused or failed calls, by the reason that clients are told.",
    ("reason",),
)  # fmt: skip
LOOP_LAG = _seconds(
    "unmask_event_loop_lag_seconds",
    "How late the event loop is, tried twice a second: what every call waits for at least.",
)

# ----------------------------------------------------------------------------------------- cache

_DISTRIBUTIONS = _counter(
    "unmask_distributions_total",
    "Next-token distributions: read from the store, or scored by an engine.",
    ("source",),
)
DISTRIBUTIONS_READ = _DISTRIBUTIONS.labels("store")
DISTRIBUTIONS_SCORED = _DISTRIBUTIONS.labels("engine")

# ------------------------------------------------------------------------------------------ tree

ROLLOUTS_STORED = _counter("unmask_rollouts_stored_total", "Rollouts that this server inserted.")
ROLLOUTS_REPEATED = _counter(
    "unmask_rollouts_repeated_total", "Rollouts that were stored already and changed nothing."
)
TREE_VERSIONS = _counter("unmask_tree_versions_total", "Batches that made a tree's new version.")
INSERT_SECONDS = _seconds(
    "unmask_insert_seconds", "Inserting a batch of rollouts, with its commit."
)
LOOK_UP_SECONDS = _seconds("unmask_look_up_seconds", "Counting rollouts along a trajectory.")

# ---------------------------------------------------------------------------------------- growth

_GROWTH_ROLLOUTS = _counter(
    "unmask_growth_rollouts_total",
    "Rollouts that growths rest on: found in the tree when they began, or sampled.",
    ("source",),
)
GROWTH_CACHED, GROWTH_SAMPLED = (_GROWTH_ROLLOUTS.labels(source) for source in ("cache", "sampled"))
GROWTH_TOKENS = _counter("unmask_growth_tokens_total", "Tokens that growths sampled.")
GROWTH_BATCHES = _counter("unmask_growth_batches_total", "Batches of rollouts that growths stored.")
GROWTH_WORK_SECONDS = _counter(
    "unmask_growth_work_seconds_total", "Time of growths at work, without their waits for a turn."
)
GROWTH_IDLE_SECONDS = _counter(
    "unmask_growth_idle_seconds_total", "Of it, planning while nothing was being sampled."
)
GROWTH_PLANNING_SECONDS = _counter(
    "unmask_growth_planning_seconds_total",
    "Planning, mostly while the batch before is sampled.",
)
GROWTHS_TAKEN_OVER = _counter(
    "unmask_growth_takeovers_total", "Growths taken over from a server that stopped or was lost."
)
GROWTH_INTERRUPTIONS = _counter(
    "unmask_growth_interruptions_total", "Times a growth was tried again after an error."
)
GROWTHS_ENDED = _counter(
    "unmask_growths_ended_total", "Growths that succeeded or failed here.", ("state",)
)
for _state in ("succeeded", "failed"):
    # There from the start: of a series that begins with 1, Prometheus sees no increase.
    GROWTHS_ENDED.labels(_state)
GROWTHS_WAITING = _gauge(
    "unmask_growths_waiting", "Growths of this server that wait for a turn on their trees."
)

# ---------------------------------------------------------------------------------------- engine

_CALL = ("engine", "call")
ENGINE_IN_FLIGHT = _gauge(
    "unmask_engine_calls_in_flight", "Batches to sample and sequences to score, under way.", _CALL
)
ENGINE_SECONDS = _seconds(
    "unmask_engine_call_seconds", "Sampling a batch of rollouts, or scoring a sequence.", _CALL
)
ENGINE_ERRORS = _counter("unmask_engine_errors_total", "Such calls that failed.", _CALL)
ENGINE_ROLLOUTS = _counter("unmask_engine_rollouts_total", "Rollouts sampled.", ("engine",))
ENGINE_TOKENS = _counter("unmask_engine_tokens_total", "Tokens sampled.", ("engine",))
ENGINE_POSITIONS = _counter("unmask_engine_positions_total", "Positions scored.", ("engine",))
_SGLANG_REQUESTS = _counter(
    "unmask_sglang_requests_total",
    "Requests for generations and scores; `gone` was not answered and is sent again.",
    ("outcome",),
)
SGLANG_OK, SGLANG_GONE, SGLANG_REFUSED = (
    _SGLANG_REQUESTS.labels(outcome) for outcome in ("ok", "gone", "refused")
)
SGLANG_SECONDS = _seconds("unmask_sglang_request_seconds", "Of one such request, if answered.")
SGLANG_PROMPT_TOKENS = _counter(
    "unmask_sglang_prompt_tokens_total", "Input tokens of rollouts from SGLang."
)
SGLANG_CACHED_TOKENS = _counter(
    "unmask_sglang_cached_tokens_total", "Of them, what its prefix cache had."
)

# -------------------------------------------------------------------------------------- database

CONNECTION_WAIT = _seconds(
    "unmask_database_connection_wait_seconds", "Getting a connection, from the pool or a new one."
)
WRITER_WAIT = _seconds(
    "unmask_database_writer_wait_seconds", "SQLite: waiting for this server's other writers."
)
TRANSACTIONS_RETRIED = _counter(
    "unmask_database_retries_total", "Transactions begun again after a transient error."
)
