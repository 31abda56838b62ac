"""What goes into the tree and what comes out of it.

Depths and positions count generated tokens: position ``t`` is the prefix ``tokens[:t]``, and the
distribution of the token that follows it. Rewards are in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

UID_BYTES = 16
FINISH_STOP = 0
"""A stop token was sampled; it is the last token."""
FINISH_LENGTH = 1
"""The token limit was reached: the rollout is truncated."""


class UnknownTreeError(LookupError):
    """There is no tree of that id."""


class VerifiersDifferError(ValueError):
    """The verifiers of a request are not those that are active on the tree."""


class TreeCorruptError(RuntimeError):
    """What is stored contradicts itself; `unmask_server.tree.check_tree` says where."""


@dataclass(frozen=True, slots=True)
class TreeRef:
    """A tree: everything sampled by one policy on one question."""

    id: int
    policy_id: str
    question_id: str
    version: int
    """Grows with every change."""


@dataclass(frozen=True, slots=True)
class NewRollout:
    """A rollout to be recorded."""

    uid: bytes
    """16 bytes by which a repetition is recognised."""
    tokens: tuple[int, ...]
    """All generated tokens, the forced ones included; may be empty."""
    forced_depth: int
    """How many of the first tokens were imposed, in [0, len(tokens)]."""
    finish: int
    """`FINISH_STOP` or `FINISH_LENGTH`."""
    rewards: Mapping[int, float]
    """By verifier key: one for every verifier that is active on the tree, and no other."""
    growth_id: str | None = None
    """Which growth paid for it."""

    def check(self) -> None:
        """Check all that can be checked without the tree; tokens are checked as they are packed.

        Raises:
            ValueError: something is out of range.

        """
        if len(self.uid) != UID_BYTES:
            raise ValueError(f"a rollout's uid has {UID_BYTES} bytes, not {len(self.uid)}")
        if not 0 <= self.forced_depth <= len(self.tokens):
            raise ValueError(
                f"forced_depth {self.forced_depth} is not in [0, {len(self.tokens)}], the length"
            )
        if self.finish not in (FINISH_STOP, FINISH_LENGTH):
            raise ValueError(f"finish is 0 (stop) or 1 (length), not {self.finish!r}")
        for key, reward in self.rewards.items():
            check_reward(reward, key)


def check_reward(reward: float, verifier_key: int) -> None:
    """Refuse what is no reward, NaN included.

    Raises:
        ValueError: it is not in [0, 1].

    """
    if math.isnan(reward) or not 0.0 <= reward <= 1.0:
        raise ValueError(f"verifier {verifier_key} gave {reward}, which is not in [0, 1]")


@dataclass(frozen=True, slots=True)
class AddResult:
    """What `TreeStore.add_rollouts` did."""

    inserted: list[bytes]
    """uids that were new, in the order given."""
    duplicates: list[bytes]
    """uids that were there before, or more than once in the batch; nothing was done for them."""
    version: int
    """The tree's version now."""
    tokens: int
    """Sampled tokens of the inserted ones: all but the forced."""


@dataclass(frozen=True, slots=True)
class StoredRollout:
    """A rollout as it is recorded."""

    id: int
    """Ascending in the order of insertion within a tree."""
    uid: bytes
    tokens: tuple[int, ...]
    """All generated tokens, from the question on."""
    forced_depth: int
    finish: int
    rewards: dict[int, float]
    """By the key of every verifier that is active on the tree."""


@dataclass(frozen=True, slots=True)
class ChildCounts:
    """How the rollouts went on from a prefix: one row a next token, ascending by token.

    A token is here if at least one rollout is valid behind it. All arrays have shape (children,).
    """

    tokens: NDArray[np.int32]
    n: NDArray[np.int64]
    """Rollouts valid at prefix + token: forced_depth <= position + 1."""
    reward_sum: NDArray[np.float64]
    truncated: NDArray[np.int64]
    """Those of the n that were cut off by their token limit."""
    free_n: NDArray[np.int64]
    """Those of the n that drew the token by themselves: forced_depth <= position."""
    free_reward_sum: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class NodeCounts:
    """What is known of one prefix. A prefix nobody has been to has counts of zero."""

    position: int
    n: int
    """Rollouts valid at the prefix: forced_depth <= position; those that end here included."""
    reward_sum: float
    truncated: int
    children: ChildCounts


@dataclass(frozen=True, slots=True)
class TreeView:
    """The answer to a look-up: everything in it is of one moment."""

    version: int
    nodes: list[NodeCounts]
    """In the order of the positions asked for."""
    rollouts: int = 0
    """How many the tree held, anywhere in it, with those that were pruned since."""


@dataclass(frozen=True, slots=True)
class SeenLengths:
    """Generated tokens of some rollouts on a question."""

    own: list[int]
    """Of free ones."""
    others: list[int]
    """Of free ones on other questions."""
    forced: list[tuple[int, int]]
    """Of forced ones: the tokens that were forced, and those in all."""


@dataclass(frozen=True, slots=True)
class TreeStatistics:
    """Totals over all trees."""

    trees: int
    nodes: int
    """Radix nodes: branching, forcing and end points, not tokens."""
    rollouts: int
    tokens: int
    """Sampled, that is paid for."""
    distributions: int


@dataclass(frozen=True, slots=True)
class StoredDistribution:
    """A next-token distribution under one model and view, as far as it is known."""

    ids: NDArray[np.int32]
    """Shape (k,), without duplicates: the `top_k` likeliest first, then any others."""
    logprobs: NDArray[np.float32]
    """Shape (k,): natural log-probability of each; finite."""
    top_k: int
    complete: bool
    """Whether the ids are the whole vocabulary."""
