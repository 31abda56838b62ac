"""Committing what a growth sampled, with what it cost."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection

from unmask_server.growth.plan import Item
from unmask_server.growth.recorder import Finished, Recorder
from unmask_server.growth.spec import Growth
from unmask_server.growth.store import GrowthStore, LeaseLostError
from unmask_server.growth.work import WorkPath
from unmask_server.tree import AddResult

Sampled = tuple[WorkPath, Finished, int, Item]
"""A rollout, where it belongs, and how many tokens were sampled for it."""


class Storing:
    """Stores the batches of one growth. Synchronous: called from threads.

    The rollouts of a tree, their outcomes, the tree's version and what the growth spent are one
    transaction: what clients are told was sampled is what is stored.
    """

    def __init__(self, held: Growth, store: GrowthStore, recorder: Recorder) -> None:
        self._held = held
        self._store = store
        self._recorder = recorder

    def store(self, batch: Sequence[Sampled]) -> None:
        """Store a batch, one transaction for each tree.

        Raises:
            LeaseLostError: the growth is not held any more. The batch is stored all the same.

        """
        by_tree: dict[int, list[Sampled]] = {}
        for item in batch:
            by_tree.setdefault(item[0].tree.id, []).append(item)
        lost: LeaseLostError | None = None
        for items in by_tree.values():
            try:
                self._store_tree(items)
            except LeaseLostError as error:
                lost = error
        if lost is not None:
            raise lost

    def _store_tree(self, items: Sequence[Sampled]) -> None:
        path = items[0][0]
        tokens = {finished.uid: tokens for _, finished, tokens, _ in items}

        def charge(connection: Connection, result: AddResult, _: object) -> None:
            new = [tokens[uid] for uid in result.inserted]
            self._store.charge(connection, self._held, len(new), sum(new))

        def charge_late(connection: Connection, result: AddResult, _: object) -> None:
            new = [tokens[uid] for uid in result.inserted]
            self._store.charge_late(connection, self._held, len(new), sum(new))

        finished = [f for _, f, _, _ in items]
        nodes, tree, growth_id = path.nodes, path.tree, self._held.id
        record = self._recorder.record
        try:
            record(nodes.policy, nodes.question, tree, finished, growth_id=growth_id, then=charge)
        except LeaseLostError:
            # The growth is no longer ours, but its samples are as good as any, and were paid for.
            record(
                nodes.policy, nodes.question, tree, finished, growth_id=growth_id, then=charge_late
            )
            raise
