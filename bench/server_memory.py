"""Resident memory of a server: idle, and after 1,000 alignments over 100,000 rollouts.

Without torch: no model is run. The baseline is a process that has imported what any such server
imports: grpc, SQLAlchemy and numpy.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import grpc
import psutil
import unmask

from bench.figures import figure, show
from bench.served import CONTEXTS, prepare, server

PEER = "import grpc, sqlalchemy, numpy, sys; print(flush=True); sys.stdin.read()"
ROLLOUTS, ASKED = 100_000, 1000


def resident(pid: int) -> float:
    """MiB."""
    return float(psutil.Process(pid).memory_info().rss) / 2**20


def main() -> None:
    peer = subprocess.Popen(
        [sys.executable, "-c", PEER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert peer.stdin is not None
    assert peer.stdout is not None
    peer.stdout.readline()
    base = resident(peer.pid)
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/bench.db"
        with server(url) as (address, process):
            show(figure("server_memory_idle", "MiB", [resident(process.pid)], [base],
                        direction="down"))  # fmt: skip
            trajectory = prepare(address, Path(folder)).node.trajectory.trajectory
            with unmask.Client(address, timeout=None) as client:
                client.grow(trajectory, rollouts_per_node=0, rollouts=ROLLOUTS).wait()
        # A new process: none of the memory is what sampling needed.
        with server(url) as (address, process), grpc.insecure_channel(address):
            with unmask.Client(address, timeout=None) as client:
                length = client.get_trajectory(trajectory).length
                for i in range(ASKED):
                    client.alignment(
                        trajectory=trajectory,
                        position=i % length,
                        teachers=list(CONTEXTS),
                        # Another coverage is another question, which no cache answers.
                        min_coverage=0.5 + i / (4 * ASKED),
                    )
            show(figure("server_memory_100000_rollouts", "MiB", [resident(process.pid)], [base],
                        direction="down"))  # fmt: skip
    peer.stdin.close()
    peer.wait()


if __name__ == "__main__":
    main()
