"""What a store promises about its rows, each promise checked and, where it is derived, restored."""

from __future__ import annotations

from unmask_server.tree.checks.findings import INVARIANTS, Finding, Report
from unmask_server.tree.checks.fsck import check_tree, fsck

__all__ = ["INVARIANTS", "Finding", "Report", "check_tree", "fsck"]
