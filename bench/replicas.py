"""What a second server over one PostgreSQL is worth, and how soon it goes on for a dead one.

`replicas_throughput`: rollouts a second that two servers commit, each growing questions of its own,
over one alone. The engine is a clock (bench/replica_server.py), 64 rollouts in flight for each
server, so the servers' share of it is the limit, as where SGLang has room left.
`replicas_throughput_processor`: the same with an engine that answers at once: then processors are
the limit, and the servers share them with PostgreSQL; no goal, for on two cores there is no second
processor to gain.

`take_over_seconds`: from kill -9 to the moment at which another server holds the growth, over the
lease.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import unmask
from sqlalchemy import select
from unmask_server.database.connect import open_database, read
from unmask_server.database.migrate import migrate
from unmask_server.database.schema import growth

from bench.figures import figure, show
from tests.stores import new_database, postgresql_server
from tests.tiny import save, word_level

REPETITIONS, TAKE_OVERS = 3, 3
QUESTIONS = 4
ROLLOUTS = 1500
GOAL = 1.8
LEASE_SECONDS = 6.0


@contextmanager
def replica(
    url: str, address: str, seconds: float, in_flight: int = 64
) -> Iterator[subprocess.Popen[bytes]]:
    """A server in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.replica_server", url, address, str(seconds), str(in_flight),
         str(LEASE_SECONDS)],
    )  # fmt: skip
    try:
        with grpc.insecure_channel(address) as channel:
            grpc.channel_ready_future(channel).result(timeout=60)
        yield process
    finally:
        process.kill()
        process.wait()


def fill(address: str, folder: Path) -> None:
    """A student and two sets of questions."""
    model = save(folder / "model", word_level(), seed=1)
    with unmask.Client(address) as client:
        client.register_policy(model, name="student", max_new_tokens=8)
        client.register_questions(
            [
                {"name": f"{part}{i}", "question": f"q : {part} {i}", "answer": "1"}
                for part in "ab"
                for i in range(QUESTIONS)
            ]
        )


def grow(address: str, part: str, request_id: str, rollouts: int = ROLLOUTS) -> None:
    """Sample so many more of one set of questions, to the end."""
    with unmask.Client(address) as client:
        targets = [unmask.question_target("student", f"{part}{i}") for i in range(QUESTIONS)]
        client.grow(targets, rollouts=rollouts, allocation="policy", request_id=request_id).wait()


def throughput(name: str, url: str, seconds: float, goal: float | None) -> None:
    """One figure."""
    one: list[float] = []
    two: list[float] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        addresses = [f"unix:{folder}/{part}" for part in "ab"]
        for address in addresses:
            stack.enter_context(replica(url, address, seconds))
        fill(addresses[0], folder)
        for address, part in zip(addresses, "ab", strict=True):
            grow(address, part, f"warm {part}", 500)
        for i in range(REPETITIONS):
            begun = time.perf_counter()
            grow(addresses[0], "a", f"one {i}")
            one.append(ROLLOUTS / (time.perf_counter() - begun))
            begun = time.perf_counter()
            with ThreadPoolExecutor(2) as pool:
                list(pool.map(lambda pair: grow(*pair, f"two {i} {pair[1]}"),  # noqa: B023
                              zip(addresses, "ab", strict=True)))  # fmt: skip
            two.append(2 * ROLLOUTS / (time.perf_counter() - begun))
    show(figure(name, "rollouts/s", two, one, goal=goal))


def take_over(url: str) -> float:
    """Seconds from a server's death to its growth's new owner."""
    database = open_database(url)

    def owner() -> str | None:
        with read(database) as connection:
            return connection.execute(select(growth.c.owner)).scalar_one()

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        process = stack.enter_context(replica(url, f"unix:{folder}/a", 0.2))
        fill(f"unix:{folder}/a", folder)
        stack.enter_context(replica(url, f"unix:{folder}/b", 0.2))
        with unmask.Client(f"unix:{folder}/a") as client:
            handle = client.grow(
                unmask.question_target("student", "a0"), rollouts=100_000, allocation="policy"
            )
            for state in handle.watch():
                if state.rollouts_sampled:
                    break
            before = owner()
            process.kill()
            killed = time.perf_counter()
            while owner() == before:
                time.sleep(0.01)
            took = time.perf_counter() - killed
    database.dispose()
    return took


def main() -> None:
    with postgresql_server(fsync=True) as server:

        def database() -> str:
            url = new_database(server)
            migrate(url)
            return url

        throughput("replicas_throughput", database(), 0.4, GOAL)
        throughput("replicas_throughput_processor", database(), 0.0, None)
        took = [take_over(database()) for _ in range(TAKE_OVERS)]
        show(figure("take_over_seconds", "s", took, [LEASE_SECONDS] * len(took), goal=1.0,
                    direction="down"))  # fmt: skip


if __name__ == "__main__":
    main()
