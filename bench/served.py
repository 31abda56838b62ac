"""A server in its own process with something to ask about."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import unmask
from unmask.v1 import diagnosis_pb2

from tests.tiny import save, word_level

CONTEXTS = ("none", "answer", "hint", "solution")


@contextmanager
def server(database: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """`unmask-server serve` on a socket of its own: its address and process."""
    with tempfile.TemporaryDirectory() as folder:
        address = f"unix:{folder}/s"
        process = subprocess.Popen(
            [sys.executable, "-m", "unmask_server", "serve", "--database", database, "--listen",
             address, "--threads", "1"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            with grpc.insecure_channel(address) as channel:
                grpc.channel_ready_future(channel).result(timeout=60)
            yield address, process
        finally:
            process.terminate()
            process.wait()


def prepare(address: str, folder: Path) -> diagnosis_pb2.GetAlignmentRequest:
    """A student, four teachers and a grown node; returns the question about it."""
    model = save(folder / "model", word_level(), seed=1, scale=3.0)
    fields = {"question": "q : 1 2", "answer": "1", "hint": "a", "solution": "so #### 1"}
    with unmask.Client(address) as client:
        client.register_policy(model, name="student", max_new_tokens=8)
        client.register_questions([{"name": "one", **fields}])
        for context in CONTEXTS:
            client.register_teacher(base="student", name=context, context=context)
        trajectory = client.sample_trajectories("student", ["one"], count=1).trajectories[0]
        client.grow(trajectory, rollouts_per_node=32, rollouts=2000).wait()
        # The models score now, so that a server started on this later needs none.
        list(client.trajectory_alignments(trajectory, teachers=list(CONTEXTS)))
        request = diagnosis_pb2.GetAlignmentRequest(teachers=list(CONTEXTS))
        request.node.trajectory.trajectory = trajectory.id
        request.node.trajectory.position = 0
        return request
