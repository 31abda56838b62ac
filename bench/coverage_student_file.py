"""The student's nodes as they were written by `coverage_student`. No torch here."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path

import numpy as np

from bench.coverage_nodes import FloatArray, Node

PATH = Path(".unmask/coverage_student.npz")
"""Where the truth is kept unless said otherwise; git ignores it."""

_RESOLUTION = 1e-6
"""A tail so small is rounding, as in `unmask_server.diagnosis.support`."""


def load(path: Path, questions: Container[int]) -> list[Node]:
    """The nodes of these questions, in turns, so that any first part of them has all questions."""
    with np.load(path) as file:
        lengths, about = file["lengths"], file["about"]
        with_tail = {k: _split(file[k], lengths + 1) for k in ("sampling", "p", "t", "s")}
        ends = _split(file["ends"], lengths)
    nodes: list[tuple[int, int, Node]] = []
    seen: dict[int, int] = {}
    for i, question in enumerate(about[:, 0].tolist()):
        turn = seen[question] = seen.get(question, -1) + 1
        if question not in questions:
            continue
        sampling, p, t = (with_tail[k][i].copy() for k in ("sampling", "p", "t"))
        for part in (sampling, p, t):
            part[-1] = part[-1] if part[-1] >= _RESOLUTION else 0.0
        t[-1] = max(t[-1], min(p[-1], _RESOLUTION))
        s = with_tail["s"][i]
        nodes.append(
            (turn, question, Node(f"q{question}", sampling, p, t, s, np.append(ends[i], False)))
        )
    return [node for _, _, node in sorted(nodes, key=lambda entry: entry[:2])]


def _split(flat: FloatArray, lengths: FloatArray) -> list[FloatArray]:
    return np.split(flat, np.cumsum(lengths)[:-1])
