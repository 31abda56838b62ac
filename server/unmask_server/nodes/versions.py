"""Versions of trees in memory, with a bound on how old they may be."""

from __future__ import annotations

import asyncio
import time

from unmask_server.tree import TreeStore

MAX_AGE_SECONDS = 1.0
"""How late another server's change may be seen, unless the newest is asked for."""


class TreeVersions:
    """The newest known version of each tree that was asked for.

    This server's own changes are known at once (`note`); those of others within `MAX_AGE_SECONDS`.
    """

    def __init__(self, trees: TreeStore) -> None:
        self._trees = trees
        self._known: dict[int, tuple[int, float]] = {}

    def note(self, tree_id: int, version: int) -> None:
        """A version that was just committed or read. Callable from any thread."""
        known = self._known.get(tree_id)
        if known is None or version >= known[0]:
            self._known[tree_id] = (version, time.monotonic())

    def current(self, tree_id: int) -> int | None:
        """The version, if it is known and young enough."""
        known = self._known.get(tree_id)
        if known is None or time.monotonic() - known[1] > MAX_AGE_SECONDS:
            return None
        return known[0]

    async def latest(self, tree_id: int) -> int:
        """The version that the database has now."""
        version = (await asyncio.to_thread(self._trees.versions, [tree_id]))[tree_id]
        self.note(tree_id, version)
        return version
