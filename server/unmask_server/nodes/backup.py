"""What is known of a trajectory's next node, told to the node before it.

At a node of a trajectory, success after the observed token is V of the next node, and V(u) =
sum_k P_k s_k with exact P: rollouts that were forced further down, which count for none of the
nodes above, speak for them through this sum. Each rollout that is valid at the next node is in
exactly one s_k, so none is counted twice; the counts of the observed token itself are put aside
where this tells more.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace

from unmask_server.computing import compute
from unmask_server.diagnosis import VALUE_DRAWS, NodePosterior, Support, Value
from unmask_server.nodes.diagnose import node_seed
from unmask_server.nodes.evidence import Evidence, EvidenceReader, evidence
from unmask_server.nodes.resolve import NodeSet
from unmask_server.tree import TreeView

KEPT = 256
"""Trajectories whose values are kept in memory."""


class BackUp:
    """Values of the nodes of trajectories."""

    def __init__(self, reader: EvidenceReader) -> None:
        self._reader = reader
        self._kept: OrderedDict[tuple[str, int, int, int, int], dict[int, Value]] = OrderedDict()

    async def improve(
        self, nodes: NodeSet, found: Sequence[Evidence], view: TreeView, top_k: int
    ) -> list[Evidence]:
        """The evidence, with the observed tokens' outcomes as the next nodes know them.

        Args:
            nodes: nodes of a trajectory; others are left as they are.
            found: evidence at its positions.
            view: counts at `positions_below(nodes)`, of the moment of `found`.
            top_k: how many of the student's likeliest tokens are candidates.

        """
        if nodes.trajectory is None or not found:
            return list(found)
        shown = nodes.demonstration.rollout.id if nodes.demonstration is not None else 0
        key = (nodes.trajectory.id, nodes.verifier.key, top_k, view.version, shown)
        values = self._kept.get(key)
        first = found[0].position + 1
        if values is None or (values and min(values) > first):
            values = self._kept[key] = await self._compute(nodes, view, top_k)
        self._kept.move_to_end(key)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return [informed(at, values.get(at.position + 1)) for at in found]

    async def _compute(self, nodes: NodeSet, view: TreeView, top_k: int) -> dict[int, Value]:
        # Without a rollout that was forced further down, counting tells as much.
        deeper = [i for i, at in enumerate(view.nodes) if at.children.n.sum() > at.n]
        if not deeper:
            return {}
        # Nodes below the last such one know nothing beyond their own counts.
        last = min(len(view.nodes), deeper[-1] + 1)
        positions = tuple(at.position for at in view.nodes[:last])
        observed = tuple(nodes.tokens[t] for t in positions)
        below = replace(nodes, positions=positions, observed=observed)
        scores = await self._reader.scores(below, [], algorithms=(), top_k=top_k)
        counted = TreeView(view.version, view.nodes[:last])
        return await compute(lambda: back_up(below, evidence(below, scores, counted)))


def positions_below(nodes: NodeSet) -> tuple[int, ...]:
    """The positions of a trajectory after the first of `nodes`; none for other nodes."""
    if nodes.trajectory is None or not nodes.positions:
        return ()
    return tuple(range(nodes.positions[0] + 1, len(nodes.tokens)))


def back_up(nodes: NodeSet, found: Sequence[Evidence]) -> dict[int, Value]:
    """Values by position, from evidence at successive positions of a trajectory."""
    values: dict[int, Value] = {}
    below: Value | None = None
    for at in reversed(found):
        at = informed(at, below)
        seed = node_seed(nodes, at)
        below = Value.of(NodePosterior(at.known, at.scores.sampling, seed=seed, size=VALUE_DRAWS))
        values[at.position] = below
    return values


def informed(at: Evidence, below: Value | None) -> Evidence:
    """The evidence at a node, given what is known of V after its observed token."""
    if below is None or at.observed is None:
        return at
    y = Support(at.scores.ids).index(at.observed)
    return at if y == len(at.scores.ids) else replace(at, known=below.told_to(at.known, y))
