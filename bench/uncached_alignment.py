"""Time to diagnose a position that no kept answer covers, over asking for a kept one.

A generation of the small student of the demo, grown; everything that models say is stored. Streams
are never kept, so every one reads the tree and the distributions and draws the posteriors anew:
what is measured is SQL, numpy and protobuf. The baseline is the same positions one after the other
when their answers are kept.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import unmask

from bench.figures import figure, show
from bench.served import server

EXAMPLES = Path(__file__).parents[1] / "examples"
STUDENT = EXAMPLES / "models" / "student"
CONTEXTS = ("none", "answer", "solution", "wrong_solution")
ROUNDS, MAX_NEW_TOKENS, ROLLOUTS_PER_NODE, MAX_ROLLOUTS = 9, 80, 16, 6000


def prepare(client: unmask.Client) -> tuple[str, int]:
    """A grown generation and four teachers; its id and how many positions it has."""
    lines = (EXAMPLES / "word_problems" / "questions.jsonl").read_text().splitlines()
    client.register_policy(STUDENT, name="student", temperature=0.7, max_new_tokens=MAX_NEW_TOKENS)
    client.register_questions([{"name": "one", **json.loads(lines[0])}])
    for context in CONTEXTS:
        client.register_teacher(base="student", name=context, context=context)
    trajectory = client.sample_trajectories("student", ["one"], count=1).trajectories[0]
    client.grow(trajectory, rollouts_per_node=ROLLOUTS_PER_NODE, rollouts=MAX_ROLLOUTS).wait()
    return trajectory.id, trajectory.length


def streamed(client: unmask.Client, trajectory: str) -> float:
    """Seconds for a stream of all positions."""
    begun = time.perf_counter()
    for _ in client.trajectory_alignments(trajectory, teachers=list(CONTEXTS)):
        pass
    return time.perf_counter() - begun


def asked(client: unmask.Client, trajectory: str, length: int) -> float:
    """Seconds for all positions one by one."""
    begun = time.perf_counter()
    for position in range(length):
        client.alignment(trajectory=trajectory, position=position, teachers=list(CONTEXTS))
    return time.perf_counter() - begun


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        server(f"sqlite:///{folder}/bench.db") as (address, _),
        unmask.Client(address, timeout=None) as client,
    ):
        trajectory, length = prepare(client)
        streamed(client, trajectory)  # scores what is not stored yet
        asked(client, trajectory, length)  # is kept from now on
        ours, theirs = [], []
        for _ in range(ROUNDS):
            ours.append(streamed(client, trajectory) / length * 1e3)
            theirs.append(asked(client, trajectory, length) / length * 1e3)
        show(figure("uncached_alignment", "ms/position", ours, theirs, direction="down"))


if __name__ == "__main__":
    main()
