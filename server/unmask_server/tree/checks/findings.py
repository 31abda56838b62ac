"""What a check found, and what there is to find."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

FINDINGS_KEPT = 1000
"""Findings that a report names; more are counted."""

INVARIANTS = {
    "tree.root": "a tree has one root: no parent, no depth, no edge",
    "tree.counters": "a tree counts its nodes, rollouts and sampled tokens",
    "node.tree": "a node is of the tree that its id says, and that tree is there",
    "node.parent": "a node's parent is in its tree",
    "node.depth": "a node is as deep as its parent and its edge together",
    "node.edge": "an edge holds tokens, and no two below a node begin alike",
    "node.fingerprint": "a node bears the fingerprint of its prefix",
    "node.reason": "something branches, ends or is forced at a node",
    "rollout.tree": "a rollout is of the tree that its id says, and that tree is there",
    "rollout.nodes": "a rollout starts and ends at nodes of its tree",
    "rollout.tokens": "the tree spells a rollout's tokens: depth and digest",
    "rollout.start": "a rollout starts before its last forced token",
    "rollout.uid": "no uid is there twice",
    "rollout.growth": "the growth that paid for a rollout is there",
    "outcome.missing": "a rollout is graded by every verifier of its tree",
    "outcome.range": "rewards are in [0, 1]",
    "outcome.orphan": "an outcome is of a rollout",
    "stat.counts": "a node's counts and sums are those of the rollouts that are valid there",
    "stat.orphan": "counts are of a node and of a verifier of its tree",
    "score.orphan": "a score is of a rollout",
    "score.form": "a score is a finite log-probability for each sampled token",
    "trajectory.rollout": "a sampled trajectory is a rollout of its tree, token for token",
    "trajectory.outcome": "an outcome of a trajectory is in [0, 1] and of one that is there",
    "growth.spent": "a growth is charged with the rollouts and tokens that it brought",
    "distribution.form": "a distribution has as many log-probabilities as ids, no id twice",
    "distribution.mass": "probabilities are at most 1, together too",
    "store.pages": "the database file is whole (SQLite's own check)",
}
"""Every invariant by its name."""

_ADVICE = {
    "tree.root": "restore a backup, or prune this tree",
    "node.reason": "harmless; it goes when the tree is exported and imported",
    "rollout.uid": "restore a backup: the index of uids was broken",
    "rollout.growth": "harmless for estimates: what it cost is not accounted for",
    "outcome.range": "regrade by a verifier of another version",
    "trajectory.rollout": "sample or submit it anew; what names it will not find its rollout",
    "trajectory.outcome": "regrade by a verifier of another version",
    "growth.spent": "compare with the server's log; what is stored counts once in any case",
    "distribution.form": "delete the row: it is scored anew when it is asked for",
    "distribution.mass": "delete the row: it is scored anew when it is asked for",
    "store.pages": "restore a backup, or `sqlite3 FILE .recover`",
}
_PRIMARY = "what was sampled is never altered: restore a backup, or prune this tree"
"""Of everything else."""


@dataclass(frozen=True, slots=True)
class Finding:
    """An invariant that does not hold somewhere."""

    invariant: str
    """One of `INVARIANTS`."""
    tree: int | None
    """Id of the tree; None where it is of none."""
    row: str
    """Which row: the table and its key."""
    problem: str
    repair: str = ""
    """What `--repair` does about it; empty: nothing."""

    @property
    def advice(self) -> str:
        """What to do."""
        return self.repair or _ADVICE.get(self.invariant, _PRIMARY)

    def __str__(self) -> str:
        """One line."""
        where = self.row if self.tree is None else f"tree {self.tree}, {self.row}"
        return f"{self.invariant}: {where}: {self.problem}"


@dataclass(slots=True)
class Report:
    """What `fsck` found."""

    checked: Counter[str] = field(default_factory=Counter)
    """Rows looked at, by table."""
    findings: list[Finding] = field(default_factory=list)
    """The first `FINDINGS_KEPT` of them."""
    counts: Counter[str] = field(default_factory=Counter)
    """Findings by invariant, all of them."""
    repaired: int = 0
    """Rows that `--repair` changed."""
    left: int = 0
    """Findings that remain: all of them without `--repair`."""

    @property
    def clean(self) -> bool:
        """Whether every invariant was found to hold."""
        return not self.counts

    @property
    def total(self) -> int:
        """Findings, all of them."""
        return self.counts.total()

    def add(self, finding: Finding) -> None:
        """Count a finding, and keep it among the first."""
        self.counts[finding.invariant] += 1
        if len(self.findings) < FINDINGS_KEPT:
            self.findings.append(finding)

    def lines(self) -> Iterator[str]:
        """For people: a line a finding and what to do, then the sums."""
        for found in self.findings:
            yield str(found)
            yield f"    {found.advice}"
        if self.total > len(self.findings):
            yield f"and {self.total - len(self.findings)} more"
        looked_at = ", ".join(f"{count} of {name}" for name, count in self.checked.items())
        yield f"looked at {looked_at or 'nothing'}"
        for name, count in sorted(self.counts.items()):
            yield f"{count} times not so: {INVARIANTS[name]} ({name})"
        if self.clean:
            yield "clean"
        elif self.repaired:
            yield f"{self.repaired} rows repaired, {self.left} findings left"

    def to_json(self) -> dict[str, Any]:
        """As one object of plain values."""
        return {
            "clean": self.clean,
            "checked": dict(self.checked),
            "counts": dict(self.counts),
            "repaired": self.repaired,
            "left": self.left,
            "findings": [asdict(found) | {"advice": found.advice} for found in self.findings],
        }
