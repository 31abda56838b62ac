"""What the teachers of a request say at a node, however they come to say it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from unmask_server.catalog.types import Teacher
from unmask_server.nodes.controls import control
from unmask_server.nodes.resolve import NodeSet

FloatArray = NDArray[np.float64]


def teacher_views(
    teacher: Teacher,
    student: Mapping[float, FloatArray],
    scored: dict[float, FloatArray] | None,
    nodes: NodeSet,
    index: int,
) -> dict[float, FloatArray]:
    """A teacher's probabilities at a node, by temperature: its own, or a control's.

    Args:
        teacher: which.
        student: the student's, by temperature, each of shape (m + 1,), tail last.
        scored: those of the teacher that it is or is of; empty where these are not known; None for
            controls that are of none.
        nodes: of which this is one.
        index: which.

    """
    if teacher.control is None:
        assert scored is not None
        return scored
    seed = _control_seed(teacher, nodes, nodes.positions[index])
    return {
        temperature: control(
            teacher.control, p, None if scored is None else scored[temperature], seed=seed
        )
        for temperature, p in student.items()
        if scored is None or temperature in scored
    }


def _control_seed(teacher: Teacher, nodes: NodeSet, position: int) -> int:
    """The same node and control give the same permutation."""
    digest = hashlib.blake2b(digest_size=8)
    for part in (teacher.id, nodes.policy.id, nodes.question.id):
        digest.update(part.encode())
    digest.update(np.asarray(nodes.tokens[:position], dtype="<u4").tobytes())
    return int.from_bytes(digest.digest(), "little")
