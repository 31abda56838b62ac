"""A team's load on one server: 64 clients that read, alone and while growths run.

    python -m bench.load [--seconds 60] [--clients 64] [--growths 8] [--rate 4] [--store sqlite]
                         [--page docs/load.md]

The engine is a clock (bench/replica_server.py), as where SGLang samples on machines of its own, so
that what is measured is the server. The clients are processes of their own (bench/load_clients.py)
and are measured themselves, against a server that does nothing. Fails if a call fails, if cached
reads are late beside growths (`LATE`), or if memory grows by more than `GROWTH_MIB` over the run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import unmask
from unmask.v1 import cache_pb2, catalog_pb2, diagnosis_pb2, growth_pb2, trajectory_pb2
from unmask_server.database.migrate import migrate

from bench.cached_alignment import empty
from bench.replicas import replica
from tests.stores import STORES, new_database, postgresql_server
from tests.tiny import save, word_level

PROCESSES = 4
TEACHERS = ["shown", "flat"]
QUIET, GROWN = 8, 8
"""Questions that are only read, and questions that are grown."""
ROLLOUTS = 300
"""Of each growth."""
ENGINE_SECONDS, ENGINE_IN_FLIGHT = 0.05, 64
ANSWER_BYTES = 400
GROWTH_MIB = 64.0
LATE = 50.0
"""The 99th percentile of all cached reads beside growths may be so many times that of calls to a
server that does nothing."""
BEGIN, END = "<!-- load: begin -->", "<!-- load: end -->"


@dataclass
class Phase:
    """What was measured while one thing went on."""

    name: str
    seconds: float
    milliseconds: dict[str, list[float]]
    errors: Counter[str]
    resident: list[float] = field(default_factory=list)
    growths: int = 0
    rollouts: int = 0

    @property
    def calls(self) -> int:
        return sum(map(len, self.milliseconds.values()))

    def told(self, kind: str) -> tuple[str, str, str]:
        """Calls, median and 99th percentile of a kind."""
        values = self.milliseconds.get(kind, ())
        if not values:
            return "0", "", ""
        return f"{len(values):,}", f"{statistics.median(values):.1f}", f"{late(values):.1f}"

    def late_reads(self) -> float:
        """The 99th percentile of all kinds of cached reads together, in milliseconds."""
        kinds = [kind for kind in self.milliseconds if kind.startswith("cached")]
        return late([value for kind in kinds for value in self.milliseconds[kind]])


def late(values: Sequence[float]) -> float:
    """The 99th percentile."""
    return sorted(values)[min(len(values) - 1, int(0.99 * len(values)))]


@dataclass(frozen=True)
class Filled:
    """What there is to ask about."""

    quiet: list[str]
    """Trajectories of questions that nobody grows."""
    grown: list[str]


def fill(address: str, folder: Path) -> Filled:
    """A student, two teachers, and questions with rollouts."""
    model = save(folder / "model", word_level(), seed=1)
    with unmask.Client(address, timeout=None) as client:
        client.register_policy(model, name="student", max_new_tokens=8)
        client.register_teacher(base="student", name=TEACHERS[0], context="answer")
        client.register_teacher(base="student", name=TEACHERS[1], control="flattened")
        names = [f"q{i}" for i in range(QUIET + GROWN)]
        client.register_questions(
            [{"name": name, "question": f"q : {name}", "answer": "1"} for name in names]
        )
        found = client.sample_trajectories("student", names, count=1).trajectories
        ids = [trajectory.id for trajectory in found]
        for trajectory in ids:
            client.grow(
                trajectory, rollouts=ROLLOUTS, rollouts_per_node=32, teachers=TEACHERS
            ).wait()
            list(client.trajectory_alignments(trajectory, teachers=TEACHERS))
    return Filled(ids[:QUIET], ids[QUIET:])


def kinds(filled: Filled) -> list[dict[str, Any]]:
    """What clients ask, and how often."""
    diagnosis, catalog = "/unmask.v1.DiagnosisService/", "/unmask.v1.CatalogService/"
    trajectory, growth = "/unmask.v1.TrajectoryService/", "/unmask.v1.GrowthService/"

    def nodes(make: Any, of: Sequence[str]) -> list[str]:
        return [
            make(
                node=diagnosis_pb2.NodeRef(
                    trajectory=diagnosis_pb2.TrajectoryPosition(trajectory=one, position=t)
                ),
                teachers=TEACHERS,
            ).SerializeToString().hex()
            for one in of
            for t in range(4)
        ]  # fmt: skip

    def sets(make: Any, of: Sequence[Any], **more: Any) -> list[str]:
        return [make(**{key: value}, **more).SerializeToString().hex() for key, value in of]

    streams = [("trajectory", one) for one in filled.quiet]
    stream, summary = (
        diagnosis_pb2.StreamTrajectoryAlignmentsRequest,
        diagnosis_pb2.SummarizeAlignmentsRequest,
    )
    align = diagnosis_pb2.GetAlignmentRequest
    listed = catalog_pb2.ListQuestionsRequest(page_size=20).SerializeToString().hex()
    return [
        _kind("cached GetAlignment", diagnosis + "GetAlignment", 50, nodes(align, filled.quiet)),
        _kind("cached GetNode", diagnosis + "GetNode", 15,
              nodes(diagnosis_pb2.GetNodeRequest, filled.quiet)),
        _kind("GetAlignment, new", diagnosis + "GetAlignment", 4, nodes(align, filled.quiet),
              varied=True),
        _kind("GetAlignment where it grows", diagnosis + "GetAlignment", 6,
              nodes(align, filled.grown)),
        _kind("GetTrajectory", trajectory + "GetTrajectory", 6,
              sets(trajectory_pb2.GetTrajectoryRequest, streams)),
        _kind("ListQuestions", catalog + "ListQuestions", 5, [listed]),
        _kind("ListGrowths", growth + "ListGrowths", 5,
              [growth_pb2.ListGrowthsRequest(page_size=20).SerializeToString().hex()]),
        _kind("GetStatistics", "/unmask.v1.CacheService/GetStatistics", 1,
              [cache_pb2.GetStatisticsRequest().SerializeToString().hex()]),
        _kind("StreamTrajectoryAlignments", diagnosis + "StreamTrajectoryAlignments", 2,
              sets(stream, streams, teachers=TEACHERS), streams=True),
        _kind("SummarizeAlignments", diagnosis + "SummarizeAlignments", 1,
              sets(summary, [("trajectories", [one]) for one in filled.quiet], teachers=TEACHERS)),
        _kind("health Check", "/grpc.health.v1.Health/Check", 5, [""]),
    ]  # fmt: skip


def _kind(
    name: str, method: str, weight: float, requests: list[str], *, varied: bool = False,
    streams: bool = False,
) -> dict[str, Any]:  # fmt: skip
    return {"name": name, "method": method, "weight": weight, "requests": requests,
            "varied": varied, "streams": streams}  # fmt: skip


def read(
    address: str,
    asked: list[dict[str, Any]],
    *,
    clients: int,
    rate: float,
    seconds: float,
    seed: str,
) -> tuple[dict[str, list[float]], Counter[str]]:
    """Have the clients call, from several processes."""
    told = {"address": address, "kinds": asked, "rate": rate, "seconds": seconds}
    running = []
    for i in range(PROCESSES):
        process = subprocess.Popen(
            [sys.executable, "-m", "bench.load_clients"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdin is not None
        share = clients * (i + 1) // PROCESSES - clients * i // PROCESSES
        process.stdin.write(json.dumps({**told, "clients": share, "seed": f"{seed}{i}"}))
        process.stdin.close()
        running.append(process)
    times: defaultdict[str, list[float]] = defaultdict(list)
    errors: Counter[str] = Counter()
    for process in running:
        assert process.stdout is not None
        found = json.load(process.stdout)
        process.wait()
        errors.update(found["errors"])
        for kind, values in found["milliseconds"].items():
            times[kind] += values
    return times, errors


class Watching:
    """The memory of a process, once a second."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._done = threading.Event()
        self.resident: list[float] = []
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Watching:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.resident.append(self._process.memory_info().rss / 2**20)
            if self._done.wait(1.0):
                return


def grow(
    address: str, trajectories: Sequence[str], name: str, until: float
) -> tuple[int, int, str]:
    """Growths one after the other: how many, their rollouts, and what went wrong."""
    growths = rollouts = 0
    with unmask.Client(address, timeout=None) as client:
        while time.monotonic() < until:
            target = trajectories[growths % len(trajectories)]
            try:
                done = client.grow(
                    target,
                    rollouts=ROLLOUTS,
                    teachers=TEACHERS,
                    half_width=0.001,
                    flat_norm=0.0,
                    request_id=f"{name}-{growths}",
                ).wait()
            except unmask.UnmaskError as error:
                return growths, rollouts, f"growth: {error.code.name}"
            growths += 1
            rollouts += done.rollouts_sampled
    return growths, rollouts, ""


def phase(
    name: str, address: str, pid: int, asked: list[dict[str, Any]], plan: argparse.Namespace,
    grown: Sequence[str] = (),
) -> Phase:  # fmt: skip
    """Read for so long, with growths beside it where there is anything to grow."""
    begun = time.monotonic()
    until = begun + plan.seconds
    with Watching(pid) as watching, ThreadPoolExecutor(max(1, plan.growths)) as pool:
        growing = [
            pool.submit(grow, address, grown, f"{name}-{i}-{os.getpid()}", until)
            for i in range(plan.growths if grown else 0)
        ]
        times, errors = read(
            address, asked, clients=plan.clients, rate=plan.rate, seconds=plan.seconds, seed=name
        )
        found = Phase(name, time.monotonic() - begun, times, errors)
        for one in growing:
            growths, rollouts, wrong = one.result()
            found.growths += growths
            found.rollouts += rollouts
            if wrong:
                found.errors[wrong] += 1
    found.resident = watching.resident
    return found


def slope(resident: Sequence[float]) -> float:
    """MiB an hour over the second half, by least squares."""
    half = list(resident)[len(resident) // 2 :]
    if len(half) < 3:
        return 0.0
    return 3600.0 * statistics.linear_regression(range(len(half)), half).slope


def table(store: str, phases: Sequence[Phase], names: Sequence[str]) -> str:
    """In Markdown."""
    head = " | ".join(f"{one.name}: calls | p50 ms | p99 ms" for one in phases)
    lines = [f"| {store} | {head} |", "|---" * (1 + 3 * len(phases)) + "|"]
    for kind in names:
        cells = [cell for one in phases for cell in one.told(kind)]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    lines.append("")
    for one in phases:
        memory = ""
        if one.resident:
            memory = (
                f" Memory {one.resident[0]:.0f} MiB at the start, {one.resident[-1]:.0f} at the "
                f"end, {max(one.resident):.0f} at most."
            )
        grown = f" {one.growths} growths, {one.rollouts:,} rollouts." if one.growths else ""
        errors = ", ".join(f"{what} {n}" for what, n in sorted(one.errors.items())) or "none"
        lines.append(
            f"- *{one.name}*: {one.calls / one.seconds:.0f} calls a second, errors: {errors}."
            f"{grown}{memory}"
        )
    return "\n".join(lines)


def run(store: str, url: str, folder: Path, plan: argparse.Namespace) -> tuple[str, list[str]]:
    """One store: its table, and what may not be."""
    migrate(url)
    address = f"unix:{folder}/s"
    with replica(url, address, ENGINE_SECONDS, ENGINE_IN_FLIGHT) as server:
        filled = fill(address, folder)
        asked = kinds(filled)
        names = [kind["name"] for kind in asked]
        # Everything once, so that what is cached is cached.
        read(
            address, asked, clients=PROCESSES, rate=20.0, seconds=min(15.0, plan.seconds), seed="w"
        )
        alone = phase("reads alone", address, server.pid, asked, plan)
        with empty(str(folder), ANSWER_BYTES) as (nothing, process):
            same = [{**kind, "method": "/bench.Empty/Call", "streams": False} for kind in asked]
            ceiling = phase("an empty server", nothing, process.pid, same, plan)
            ceiling.resident = []
        both = phase("reads and growths", address, server.pid, asked, plan, filled.grown)
    wrong = [f"{store}: {what}" for one in (alone, both) for what in one.errors]
    growth = slope(both.resident) * min(1.0, plan.seconds / 3600.0)
    if growth > GROWTH_MIB:
        wrong.append(f"{store}: memory grew by {growth:.0f} MiB over the run")
    ratio = both.late_reads() / ceiling.late_reads()
    if ratio > plan.late:
        wrong.append(f"{store}: cached reads beside growths are late: {ratio:.0f} times")
    told = (
        f"- p99 of all cached reads: {ceiling.late_reads():.1f} ms, {alone.late_reads():.1f} ms, "
        f"{both.late_reads():.1f} ms: {ratio:.1f} times the empty server's (bound {plan.late:g})."
    )
    return table(store, (ceiling, alone, both), names) + "\n" + told, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each phase")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--rate", type=float, default=1.0, help="calls a second of each client")
    parser.add_argument("--growths", type=int, default=8, help="at once")
    parser.add_argument("--late", type=float, default=LATE, help="what cached reads may be")
    parser.add_argument("--store", action="append", choices=STORES, help="both by default")
    parser.add_argument("--page", type=Path, help="whose table is replaced")
    plan = parser.parse_args()
    tables, wrong = [], []
    before = os.getloadavg()[0]
    for store in plan.store or STORES:
        with tempfile.TemporaryDirectory() as folder:
            if store == "sqlite":
                found, bad = run(store, f"sqlite:///{folder}/load.db", Path(folder), plan)
            else:
                with postgresql_server() as server:
                    found, bad = run(store, new_database(server), Path(folder), plan)
        print(found, flush=True)
        tables.append(found)
        wrong += bad
    load = f"Load of the machine before and after: {before:.1f}, {os.getloadavg()[0]:.1f}."
    print(load, *wrong, sep="\n")
    if plan.page is not None:
        page = plan.page.read_text()
        start, rest = page.split(BEGIN)
        made = "\n\n".join((f"{plan.clients} clients, {plan.rate:g} calls a second each, "
                            f"{plan.growths} growths at once, {plan.seconds:g} s a phase. {load}",
                            *tables))  # fmt: skip
        plan.page.write_text(f"{start}{BEGIN}\n{made}\n{END}{rest.split(END)[1]}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
