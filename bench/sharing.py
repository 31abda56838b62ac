"""Exporting and importing a cache, in a server that runs no model.

`import_rollouts`: rollouts a second from a folder, by `unmask.sharing`, over a socket, into an
empty SQLite file; the baseline is `TreeStore.add_rollouts` with the same ones, in this process.
`export_memory`, `import_memory`: the largest resident memory of a server that has exported, and of
one that has imported, 50,000 rollouts, over that with 5,000: what streams needs no more.
"""

from __future__ import annotations

import random
import tempfile
import time
from pathlib import Path

import psutil
import unmask
from unmask.sharing import export_to, import_from
from unmask_server.database.connect import open_database
from unmask_server.tree import FINISH_LENGTH, FINISH_STOP, NewRollout, TreeStore

from bench.figures import figure, show
from bench.served import server
from tests.tiny import save, word_level

SMALL, LARGE = 5_000, 50_000
TOKENS = 60
BATCH = 1000
TREES = 4


def rollouts(count: int) -> list[NewRollout]:
    """Free and forced ones of a policy with 21 tokens, of which 0 ends a generation."""
    rng = random.Random(0)
    made = []
    for number in range(count):
        length = min(TOKENS, 1 + int(rng.expovariate(1 / 25)))
        tokens = [1 + int(rng.betavariate(1, 4) * 20) for _ in range(length)]
        stops = length < TOKENS
        if stops:
            tokens[-1] = 0
        forced = 0 if number % 5 == 0 else rng.randrange(length)
        finish = FINISH_STOP if stops else FINISH_LENGTH
        made.append(
            NewRollout(
                rng.randbytes(16), tuple(tokens), forced, finish, {1: float(number % 3 == 0)}
            )
        )
    return made


def register(client: unmask.Client, model: Path) -> tuple[str, list[str]]:
    """The policy's id and the questions'."""
    policy = client.register_policy(model, name="student", max_new_tokens=TOKENS).policy
    rows = [{"name": f"q{i}", "question": f"q {i}", "answer": "1"} for i in range(TREES)]
    found = client.register_questions(rows, verifier="last_number")
    # Opens the trees and counts by their verifier.
    for row in found:
        list(client.list_rollouts(policy, row.question))
    return policy.id, [row.question.id for row in found]


def fill(url: str, policy: str, questions: list[str], given: list[NewRollout]) -> float:
    """Add rollouts to the trees in turn; returns the seconds."""
    engine = open_database(url)
    store = TreeStore(engine)
    trees = [store.open_tree(policy, question).id for question in questions]
    begin = time.perf_counter()
    for i, start in enumerate(range(0, len(given), BATCH)):
        store.add_rollouts(trees[i % TREES], given[start : start + BATCH])
    seconds = time.perf_counter() - begin
    engine.dispose()
    return seconds


def peak(pid: int) -> float:
    """MiB that a process had at most."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return psutil.Process(pid).memory_info().rss / 2**20


def measure(folder: Path, model: Path, count: int) -> tuple[float, float, float, float]:
    """Peaks of the exporting and of the importing server; rollouts a second: imported, added."""
    url = f"sqlite:///{folder}/a.db"
    with server(url) as (address, _), unmask.Client(address, timeout=None) as client:
        policy, questions = register(client, model)
    direct = fill(url, policy, questions, rollouts(count))
    with server(url) as (address, process), unmask.Client(address, timeout=None) as client:
        export_to(client, folder / "out")
        exporting = peak(process.pid)
    with server(f"sqlite:///{folder}/b.db") as (address, process):
        with unmask.Client(address, timeout=None) as client:
            begin = time.perf_counter()
            done = import_from(client, folder / "out")
            seconds = time.perf_counter() - begin
        assert done.counts["rollouts_added"] == count
        importing = peak(process.pid)
    return exporting, importing, count / seconds, count / direct


def main() -> None:
    found = []
    with tempfile.TemporaryDirectory() as folder:
        model = save(Path(folder) / "model", word_level())
        for count in (SMALL, LARGE):
            place = Path(folder) / str(count)
            place.mkdir()
            found.append(measure(place, model, count))
    small, large = found
    show(figure("import_rollouts", "rollouts/s", [small[2], large[2]], [small[3], large[3]]))
    show(figure("export_memory", "MiB", [large[0]], [small[0]], goal=1.2, direction="down"))
    show(figure("import_memory", "MiB", [large[1]], [small[1]], goal=1.2, direction="down"))


if __name__ == "__main__":
    main()
