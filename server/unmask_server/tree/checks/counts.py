"""A whole tree: its shape, its rollouts, and that everything counted is what they give."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, bindparam, delete, insert, select, update

from unmask_server.database.rows import AnyRow
from unmask_server.database.schema import node_stat, tree, tree_verifier
from unmask_server.tree.checks.findings import Finding
from unmask_server.tree.checks.rollouts import RolloutCheck, Totals
from unmask_server.tree.checks.shape import Shape, shape_findings
from unmask_server.tree.checks.streams import chunks
from unmask_server.tree.ids import first_id, id_range

_TOLERANCE = 1e-6
"""For sums of rewards, a rollout: they depend on the order of addition, in the last digits."""

_RECOUNTED = "counted anew from the rollouts and their outcomes"
_COUNTERS = "set to what is there"

_COLUMNS = ("n", "reward_sum", "truncated", "forced_n", "forced_reward_sum")


@dataclass(slots=True)
class Fixes:
    """What would restore the derived rows of a tree."""

    stats: list[tuple[int, int, int]] = field(default_factory=list)
    """To be counted anew: node id, verifier, and the node's place among the totals."""
    surplus: list[tuple[int, int]] = field(default_factory=list)
    """To be deleted: node id and verifier."""
    ungraded: set[int] = field(default_factory=set)
    """Verifiers that are no longer active."""
    counters: dict[str, int] = field(default_factory=dict)


class TreeCheck:
    """Checks one tree in the transaction of a connection. `run` first, then `repair`."""

    def __init__(self, connection: Connection, ref: AnyRow) -> None:
        self._connection = connection
        self._ref = ref
        self._fixes = Fixes()
        self._totals: Totals | None = None
        self.checked: Counter[str] = Counter()
        """Rows looked at, by table."""

    def run(self) -> Iterator[Finding]:
        """Check everything; the nodes' numbers are held in memory, their tokens are not."""
        connection, ref = self._connection, self._ref
        broken = False
        for finding in shape_findings(connection, ref):
            broken = True
            yield finding
        shape = Shape(connection, ref.id)
        keys = select(tree_verifier.c.verifier_key).where(tree_verifier.c.tree_id == ref.id)
        active = set(connection.scalars(keys))
        rollouts = RolloutCheck(connection, ref.id, shape, active)
        yield from rollouts.findings()
        self.checked.update(node=len(shape.ids), rollout=rollouts.count)
        yield from self._counter_findings(shape, rollouts)
        self._fixes.ungraded = rollouts.ungraded
        broken |= rollouts.broken
        if not broken:
            yield from self._reason_findings(shape, rollouts)
            self._totals = rollouts.totals()
        yield from self._stat_findings(shape, active)

    def repair(self) -> int:
        """Restore what is derived, the tree being locked; returns how many rows changed."""
        connection, fixes, tree_id = self._connection, self._fixes, self._ref.id
        changed = self._recount()
        if fixes.ungraded:
            first, end = id_range(tree_id)
            gone = delete(tree_verifier).where(
                tree_verifier.c.tree_id == tree_id, tree_verifier.c.verifier_key.in_(fixes.ungraded)
            )
            changed += connection.execute(gone).rowcount
            stats = delete(node_stat).where(
                node_stat.c.node_id >= first,
                node_stat.c.node_id < end,
                node_stat.c.verifier_key.in_(fixes.ungraded),
            )
            changed += connection.execute(stats).rowcount
        changed += bool(fixes.counters)
        if changed:
            # What was answered from the old numbers must not be found again under this version.
            values = fixes.counters | {"version": self._ref.version + 1}
            connection.execute(update(tree).where(tree.c.id == tree_id), values)
        return changed

    def _recount(self) -> int:
        fixes, totals = self._fixes, self._totals
        wrong = [*fixes.surplus, *((node_id, key) for node_id, key, _ in fixes.stats)]
        remove = delete(node_stat).where(
            node_stat.c.node_id == bindparam("of_node"),
            node_stat.c.verifier_key == bindparam("of_verifier"),
        )
        if wrong:
            self._connection.execute(remove, [{"of_node": n, "of_verifier": k} for n, k in wrong])
        if totals is not None:
            rows = [
                {"node_id": node_id, "verifier_key": key, **_wanted(totals, key, place)}
                for node_id, key, place in fixes.stats
                if totals.n[place] and key not in fixes.ungraded
            ]
            if rows:
                self._connection.execute(insert(node_stat), rows)
        return len(wrong)

    def _found(self, invariant: str, row: str, problem: str, repair: str = "") -> Finding:
        return Finding(invariant, self._ref.id, row, problem, repair)

    def _reason_findings(self, shape: Shape, rollouts: RolloutCheck) -> Iterator[Finding]:
        """Report nodes at which there should be no split."""
        children = np.bincount(shape.parents[shape.parents >= 0], minlength=len(shape.ids))
        needless = (shape.parents >= 0) & (children < 2) & ~rollouts.is_point
        for node_id in shape.ids[needless].tolist():
            problem = "nothing branches, ends or is forced there"
            yield self._found("node.reason", f"node {node_id}", problem)

    def _counter_findings(self, shape: Shape, rollouts: RolloutCheck) -> Iterator[Finding]:
        ref, first = self._ref, first_id(self._ref.id)
        # The counters number what comes next, so a row that is missing shows as a gap.
        last_node = int(shape.ids[-1]) - first + 1 if len(shape.ids) else 1
        gone = ref.rollouts_pruned
        last_rollout = gone if rollouts.last_id is None else rollouts.last_id - first + 1
        for name, counter, reached, count in (
            ("nodes", ref.nodes, last_node, len(shape.ids)),
            ("rollouts", ref.rollouts, last_rollout, rollouts.count + gone),
        ):
            if counter != count:
                repair = ""
                if counter != reached:
                    self._fixes.counters[name] = reached
                    repair = _COUNTERS
                problem = f"the tree says {counter} {name}, there are {count}"
                if name == "rollouts" and gone:
                    problem += f" with {gone} that were pruned"
                if reached != count:
                    problem += f", the last one numbered {reached - 1}"
                yield self._found("tree.counters", "counters", problem, repair)
        if ref.tokens != rollouts.sampled:
            self._fixes.counters["tokens"] = rollouts.sampled
            problem = f"the tree says {ref.tokens} tokens, there are {rollouts.sampled}"
            yield self._found("tree.counters", "counters", problem, _COUNTERS)

    def _stat_findings(self, shape: Shape, active: set[int]) -> Iterator[Finding]:
        first, end = id_range(self._ref.id)
        seen = {key: np.zeros(len(shape.ids), np.bool_) for key in active}
        wanted = select(node_stat).where(node_stat.c.node_id >= first, node_stat.c.node_id < end)
        for rows in chunks(self._connection, wanted.order_by(node_stat.c.node_id)):
            places = shape.places(np.array([row.node_id for row in rows], np.int64))
            self.checked["node_stat"] += len(rows)
            for row, place in zip(rows, places.tolist(), strict=True):
                key = row.verifier_key
                if key not in active or place < 0:
                    self._fixes.surplus.append((row.node_id, key))
                    why = "which is not active" if key not in active else "but there is no node"
                    yield self._found(
                        "stat.orphan",
                        f"node {row.node_id}",
                        f"counts of verifier {key}, {why}",
                        "deleted",
                    )
                    continue
                seen[key][place] = True
                yield from self._compared(row, key, place)
        if self._totals is not None:
            for key in sorted(active - self._fixes.ungraded):
                missing = (self._totals.n > 0) & ~seen[key]
                for place in np.flatnonzero(missing).tolist():
                    yield self._wrong(int(shape.ids[place]), key, place, "missing")

    def _compared(self, row: AnyRow, key: int, place: int) -> Iterator[Finding]:
        if self._totals is None or key in self._fixes.ungraded:
            return
        given = {name: getattr(row, name) for name in _COLUMNS}
        wanted = _wanted(self._totals, key, place)
        tolerance = _TOLERANCE * max(1, wanted["n"])
        if any(abs(given[name] - wanted[name]) > (tolerance if "sum" in name else 0)
               for name in _COLUMNS):  # fmt: skip
            yield self._wrong(row.node_id, key, place, _told(given))

    def _wrong(self, node_id: int, key: int, place: int, given: str) -> Finding:
        assert self._totals is not None
        self._fixes.stats.append((node_id, key, place))
        problem = f"counts of verifier {key} are {given}, not "
        problem += _told(_wanted(self._totals, key, place))
        return self._found("stat.counts", f"node {node_id}", problem, _RECOUNTED)


def _wanted(totals: Totals, key: int, place: int) -> dict[str, Any]:
    def number(column: NDArray[Any]) -> Any:
        return column[place].item()

    n = number(totals.n)
    # What was added and subtracted again may miss zero, or the count, in its last digit.
    return {
        "n": n,
        "reward_sum": min(max(number(totals.reward_sum[key]), 0.0), float(n)),
        "truncated": number(totals.truncated),
        "forced_n": number(totals.forced_n),
        "forced_reward_sum": number(totals.forced_reward_sum[key]),
    }


def _told(counts: dict[str, Any]) -> str:
    return ", ".join(f"{name} {counts[name]:g}" for name in _COLUMNS)
