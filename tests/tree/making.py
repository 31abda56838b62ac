"""Short ways to make rollouts and trees in tests."""

from __future__ import annotations

import os

from sqlalchemy import Engine
from unmask_server.tree import FINISH_STOP, NewRollout, TreeStore


def uid(number: int) -> bytes:
    return number.to_bytes(16, "big")


def new(
    *tokens: int,
    forced: int = 0,
    reward: float = 1.0,
    finish: int = FINISH_STOP,
    id_: int | None = None,
) -> NewRollout:
    """A rollout graded by verifier 1, with a random uid unless one is given."""
    name = os.urandom(16) if id_ is None else uid(id_)
    return NewRollout(name, tokens, forced, finish, {1: reward})


def open_graded(engine: Engine, question: str = "q1") -> tuple[TreeStore, int]:
    """An empty tree on which verifier 1 is active."""
    store = TreeStore(engine)
    tree_id = store.open_tree("p1", question).id
    store.activate_verifier(tree_id, 1, lambda rollouts: [0.0] * len(rollouts))
    return store, tree_id
