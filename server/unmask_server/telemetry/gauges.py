"""What is looked up when somebody asks for the metrics."""

from __future__ import annotations

import asyncio
import contextlib
import platform
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Protocol

import structlog
from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.gc_collector import GCCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from unmask_server.telemetry import metrics

log = structlog.get_logger(__name__)

STORE_SECONDS = 30.0
"""How often the store's size is asked for."""
LAG_SECONDS = 0.5
"""How often the event loop is tried."""

ProcessCollector(registry=metrics.REGISTRY)
GCCollector(registry=metrics.REGISTRY)


@dataclass(frozen=True, slots=True)
class Build:
    """What runs."""

    version: str
    database: str
    """sqlite or postgresql."""
    schema: str
    """Revision of the database's schema."""


@dataclass(frozen=True, slots=True)
class Store:
    """How much the database holds."""

    trees: int
    nodes: int
    rollouts: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Answers:
    """Kept answers, and how often one was asked for."""

    entries: int
    size: int
    """Bytes."""
    hits: int
    misses: int


class Watched(Protocol):
    """A server's parts, as far as they are looked at. Callable from any thread."""

    def build(self) -> Build:
        """What runs."""
        ...

    def growths(self) -> int:
        """Growths at work here."""
        ...

    def answers(self) -> Answers:
        """Kept answers."""
        ...

    def engines(self) -> int:
        """Engines that have started."""
        ...

    def replicas(self) -> tuple[int, int]:
        """SGLang servers of running engines: those that answer, and those left out."""
        ...

    def connections(self) -> tuple[int, int, int]:
        """To the database: in use, idle, and how many there may be."""
        ...

    def store(self) -> Store:
        """Asks the database; may take long."""
        ...


class Gauges(Collector):
    """Looks at a server's parts whenever its metrics are asked for."""

    def __init__(self, watched: Watched) -> None:
        self._watched = watched
        self._store: Store | None = None

    def describe(self) -> list[Metric]:
        """The families, without values: nothing is looked at."""
        return list(_families().values())

    def collect(self) -> Iterator[Metric]:
        """The families, as things are."""
        found = _families()
        watched = self._watched
        build = watched.build()
        found["unmask_build_info"].add_metric(
            [build.version, platform.python_version(), build.database, build.schema], 1.0
        )
        answers = watched.answers()
        up, down = watched.replicas()
        in_use, idle, limit = watched.connections()
        for name, labels, value in (
            ("unmask_growths_running", [], watched.growths()),
            ("unmask_answer_cache_entries", [], answers.entries),
            ("unmask_answer_cache_bytes", [], answers.size),
            ("unmask_answers_total", ["hit"], answers.hits),
            ("unmask_answers_total", ["miss"], answers.misses),
            ("unmask_engines", [], watched.engines()),
            ("unmask_sglang_servers", ["up"], up),
            ("unmask_sglang_servers", ["down"], down),
            ("unmask_database_connections", ["in_use"], in_use),
            ("unmask_database_connections", ["idle"], idle),
            ("unmask_database_connections_limit", [], limit),
        ):
            found[name].add_metric(labels, float(value))
        if (store := self._store) is not None:
            found["unmask_trees"].add_metric([], float(store.trees))
            found["unmask_tree_nodes"].add_metric([], float(store.nodes))
            found["unmask_tree_rollouts"].add_metric([], float(store.rollouts))
            found["unmask_tree_tokens"].add_metric([], float(store.tokens))
        yield from found.values()

    async def look(self) -> None:
        """Ask for the store's size now and then; and try the event loop."""
        await asyncio.gather(self._look_at_store(), _try_loop())

    async def _look_at_store(self) -> None:
        while True:
            try:
                self._store = await asyncio.to_thread(self._watched.store)
            except Exception as error:
                # Whatever it is, others meet it too; what was known before stands.
                log.debug("the store's size is not known", error=type(error).__name__)
            await asyncio.sleep(STORE_SECONDS)


@contextlib.asynccontextmanager
async def watching(watched: Watched) -> AsyncIterator[None]:
    """Let the metrics tell of these parts while the context is open."""
    gauges = Gauges(watched)
    metrics.REGISTRY.register(gauges)
    task = asyncio.create_task(gauges.look())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        metrics.REGISTRY.unregister(gauges)


async def _try_loop() -> None:
    while True:
        due = time.monotonic() + LAG_SECONDS
        await asyncio.sleep(LAG_SECONDS)
        metrics.LOOP_LAG.observe(max(0.0, time.monotonic() - due))


GAUGES = tuple(
    metrics.Described(name, "counter" if name.endswith("_total") else "gauge", labels, what)
    for name, what, labels in (
        ("unmask_build_info", "Always 1.", ("version", "python", "database", "schema")),
        ("unmask_growths_running", "Growths that this server works on.", ()),
        (
            "unmask_answers_total",
            "Answers about one node: kept ones (hit) and computed ones (miss).",
            ("result",),
        ),
        ("unmask_answer_cache_entries", "Answers kept in memory.", ()),
        ("unmask_answer_cache_bytes", "Memory of kept answers.", ()),
        ("unmask_engines", "Models that run, embedded or on SGLang.", ()),
        ("unmask_sglang_servers", "SGLang servers of these models: up, or down.", ("state",)),
        ("unmask_database_connections", "Of the pool: in_use or idle.", ("state",)),
        ("unmask_database_connections_limit", "How many there may be.", ()),
        ("unmask_trees", "Trees in the database; asked every half minute.", ()),
        ("unmask_tree_nodes", "Their nodes.", ()),
        ("unmask_tree_rollouts", "Their rollouts.", ()),
        ("unmask_tree_tokens", "Sampled tokens of all rollouts that were ever stored.", ()),
    )
)
"""What `Gauges` tells."""


def _families() -> dict[str, GaugeMetricFamily | CounterMetricFamily]:
    kinds = {"gauge": GaugeMetricFamily, "counter": CounterMetricFamily}
    return {one.name: kinds[one.kind](one.name, one.what, labels=one.labels) for one in GAUGES}
