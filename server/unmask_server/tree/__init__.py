"""The prefix tree of rollout outcomes, and the distributions that were scored along it, in SQL."""

from __future__ import annotations

from unmask_server.tree.checks import Finding, Report, check_tree, fsck
from unmask_server.tree.distributions import DiffersError, DistributionStore, merge
from unmask_server.tree.fingerprint import prefix_fingerprints, seed_fingerprint, tokens_digest
from unmask_server.tree.outcomes import (
    Moments,
    OutcomeDiffersError,
    OutcomeStore,
    UnknownRolloutError,
)
from unmask_server.tree.scores import RolloutScoreStore
from unmask_server.tree.share import Merged, Offered, ShareReader, merge_offered
from unmask_server.tree.store import TreeStore
from unmask_server.tree.types import (
    FINISH_LENGTH,
    FINISH_STOP,
    AddResult,
    ChildCounts,
    NewRollout,
    NodeCounts,
    SeenLengths,
    StoredDistribution,
    StoredRollout,
    TreeCorruptError,
    TreeRef,
    TreeStatistics,
    TreeView,
    UnknownTreeError,
    VerifiersDifferError,
)

__all__ = [
    "FINISH_LENGTH",
    "FINISH_STOP",
    "AddResult",
    "ChildCounts",
    "DiffersError",
    "DistributionStore",
    "Finding",
    "Merged",
    "Moments",
    "NewRollout",
    "NodeCounts",
    "Offered",
    "OutcomeDiffersError",
    "OutcomeStore",
    "Report",
    "RolloutScoreStore",
    "SeenLengths",
    "ShareReader",
    "StoredDistribution",
    "StoredRollout",
    "TreeCorruptError",
    "TreeRef",
    "TreeStatistics",
    "TreeStore",
    "TreeView",
    "UnknownRolloutError",
    "UnknownTreeError",
    "VerifiersDifferError",
    "check_tree",
    "fsck",
    "merge",
    "merge_offered",
    "prefix_fingerprints",
    "seed_fingerprint",
    "tokens_digest",
]
