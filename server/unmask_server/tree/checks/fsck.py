"""The whole store, tree by tree, while servers work on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial

from sqlalchemy import Connection, Engine, select

from unmask_server.database.connect import query, snapshot, transact
from unmask_server.database.schema import tree
from unmask_server.tree.checks import growths, references, scored
from unmask_server.tree.checks.counts import TreeCheck
from unmask_server.tree.checks.findings import Finding, Report
from unmask_server.tree.insert import lock_tree

_TREES = 1000


def fsck(engine: Engine, repair: bool = False) -> Report:
    """Check every invariant of `INVARIANTS` on a store that others may be writing to.

    Each tree is read in one snapshot, everything between tables by single statements, so what is
    being written is seen whole or not at all. Held in memory are the nodes' numbers of one tree at
    a time (some 100 bytes a node and verifier); tokens are streamed.

    Args:
        engine: of a database at this program's revision.
        repair: restore what is derived: counts and sums from the rollouts and their outcomes,
            counters, rows of what is not there, scores that cannot be read. Each tree is locked
            while it is checked once more and repaired; its version grows. Rollouts, tokens,
            trajectories, outcomes of rollouts and distributions are never altered.

    Returns:
        What was found, before any repair.

    """
    report = Report()
    for tree_id in _tree_ids(engine):
        found = _check(engine, tree_id, report)
        for finding in found:
            report.add(finding)
        if repair and any(finding.repair for finding in found):
            report.repaired += transact(engine, partial(_repair_tree, tree_id))
            found = _check(engine, tree_id, Report())
        report.left += len(found)
    _check_between(engine, report, repair)
    return report


def check_tree(engine: Engine, tree_id: int) -> list[Finding]:
    """Check one tree by itself: shape, rollouts, outcomes, statistics and counters."""
    return _check(engine, tree_id, Report())


def _tree_ids(engine: Engine) -> Iterator[int]:
    after = 0
    while True:
        wanted = select(tree.c.id).where(tree.c.id > after).order_by(tree.c.id).limit(_TREES)
        ids = query(engine, lambda c, wanted=wanted: list(c.scalars(wanted)))  # type: ignore[misc]
        if not ids:
            return
        yield from ids
        after = ids[-1]


def _check(engine: Engine, tree_id: int, report: Report) -> list[Finding]:
    with snapshot(engine) as connection:
        ref = connection.execute(select(tree).where(tree.c.id == tree_id)).first()
        if ref is None:
            problem = "there is no such tree"
            return [Finding("tree.root", tree_id, "tree", problem)]
        check = TreeCheck(connection, ref)
        found = list(check.run())
        report.checked["tree"] += 1
        report.checked.update(check.checked)
        return found


def _repair_tree(tree_id: int, connection: Connection) -> int:
    check = TreeCheck(connection, lock_tree(connection, tree_id))
    for _ in check.run():
        pass
    return check.repair()


def _check_between(engine: Engine, report: Report, repair: bool) -> None:
    for check in _BETWEEN:
        before = report.total
        for finding in _found(engine, check, report.checked):
            report.add(finding)
        found = report.total - before
        if found and repair and check in _REPAIRS:
            report.repaired += transact(engine, _REPAIRS[check])
            found = sum(1 for _ in _found(engine, check, Counter()))
        report.left += found


def _found(engine: Engine, check: Check, checked: Counter[str]) -> Iterator[Finding]:
    with snapshot(engine) as connection:
        yield from check(connection, checked)


Check = Callable[[Connection, Counter[str]], Iterator[Finding]]

_BETWEEN: tuple[Check, ...] = (
    references.page_findings,
    references.stray_findings,
    references.orphan_findings,
    references.trajectory_findings,
    growths.findings,
    scored.score_findings,
    scored.distribution_findings,
)
_REPAIRS: dict[Check, Callable[[Connection], int]] = {
    references.orphan_findings: references.delete_orphans,
    growths.findings: growths.charge,
    scored.score_findings: scored.delete_scores,
}
