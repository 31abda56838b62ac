"""Versions of trees in memory, with a bound on how old they may be."""

from __future__ import annotations

import asyncio
import time

from unmask_server.database.notices import Notices
from unmask_server.remembered import Remembered
from unmask_server.tree import TreeStore

MAX_AGE_SECONDS = 1.0
"""How late another server's change may be seen, unless the newest is asked for."""

_REMEMBERED = 100_000
"""Trees whose versions are kept in memory."""


class TreeVersions:
    """The newest known version of each tree that was asked for.

    This server's own changes are known at once (`note`). Those of others within `MAX_AGE_SECONDS`,
    by asking the database anew after so long; or, on PostgreSQL, by notice: then a version stands
    without a question as long as the notices are complete, which is tried more often than that.
    """

    def __init__(self, trees: TreeStore) -> None:
        self._trees = trees
        self._notices: Notices | None = None
        self._known = Remembered[int, tuple[int, float]](_REMEMBERED)
        self._queries: dict[int, asyncio.Future[int]] = {}

    def rely_on(self, notices: Notices) -> None:
        """Let versions stand as long as these notices are complete."""
        self._notices = notices

    def note(self, tree_id: int, version: int, *, since: float | None = None) -> None:
        """A version that was committed or read. Callable from any thread.

        Args:
            tree_id: whose.
            version: of the tree.
            since: a time of `time.monotonic()` before it was read; None: now.

        """
        at = time.monotonic() if since is None else since
        known = self._known.get(tree_id)
        if known is None or version > known[0]:
            self._known.put(tree_id, (version, at))
        elif version == known[0]:
            self._known.put(tree_id, (version, max(at, known[1])))

    def note_if_known(self, tree_id: int, version: int) -> None:
        """A version that another server told of: trees that nobody asks for here are left out."""
        if self._known.get(tree_id) is not None:
            self.note(tree_id, version)

    def current(self, tree_id: int) -> int | None:
        """The version, if it is known and young enough."""
        known = self._known.get(tree_id)
        if known is None:
            return None
        version, at = known
        oldest = time.monotonic() - MAX_AGE_SECONDS
        if at >= oldest:
            return version
        notices = self._notices
        if notices is None or notices.complete_since is None:
            return None
        # Whatever changed after it was read, up to a moment that is young enough, was told.
        if at >= notices.complete_since and notices.complete_until >= oldest:
            return version
        return None

    async def recent(self, tree_id: int) -> int:
        """The version, young enough. Those who need it at the same time share one query."""
        if (version := self.current(tree_id)) is not None:
            return version
        query = self._queries.get(tree_id)
        if query is None:
            query = asyncio.ensure_future(self.latest(tree_id))
            self._queries[tree_id] = query
            query.add_done_callback(lambda _: self._queries.pop(tree_id))
        # A caller that goes away does not take the answer from the others.
        return await asyncio.shield(query)

    async def latest(self, tree_id: int) -> int:
        """The version that the database has now."""
        begun = time.monotonic()
        version = (await asyncio.to_thread(self._trees.versions, [tree_id]))[tree_id]
        self.note(tree_id, version, since=begun)
        return version
