"""Rollouts and trajectories of another cache, merged into this one."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import Connection

from unmask_server.catalog import Catalog
from unmask_server.catalog.errors import FailedPrecondition, InvalidArgument
from unmask_server.catalog.types import Policy, Question, Trajectory
from unmask_server.growth.asked import sampled_id
from unmask_server.growth.paths import check_path
from unmask_server.growth.recorder import Finished, Recorder
from unmask_server.growth.trajectories import submitted_id
from unmask_server.reasons import Reason
from unmask_server.tree import (
    AddResult,
    Merged,
    Offered,
    OutcomeStore,
    TreeRef,
    TreeStore,
    merge_offered,
    tokens_digest,
)
from unmask_server.tree.types import check_reward


@dataclass(frozen=True, slots=True)
class ImportedRollout:
    """A rollout as another cache told it."""

    field: str
    """Of the request, for errors."""
    finished: Finished
    policy_id: str
    question_id: str
    outcomes: Mapping[int, float]
    """By verifier key."""


@dataclass(frozen=True, slots=True)
class ImportedTrajectory:
    """A trajectory as another cache told it."""

    field: str
    trajectory: Trajectory
    """`rewards` by verifier key; `created_at` is when it came here."""


@dataclass(frozen=True, slots=True)
class RolloutsImported:
    """What `Importer.rollouts` did."""

    added: int
    merged: Merged


class Importer:
    """Merges by id: what is here stays as it is. Synchronous: called from threads."""

    def __init__(
        self, catalog: Catalog, trees: TreeStore, outcomes: OutcomeStore, recorder: Recorder
    ) -> None:
        self._catalog = catalog
        self._trees = trees
        self._outcomes = outcomes
        self._recorder = recorder

    def check(self, given: Sequence[ImportedRollout]) -> None:
        """Refuse rollouts that contradict themselves.

        Raises:
            InvalidArgument: so does one.
            NotFound: its policy or question is not here.

        """
        for one in given:
            policy = self._catalog.get_policy(one.policy_id)
            self._catalog.get_question(one.question_id)
            told = one.finished
            check_path(policy, told.tokens, told.forced_depth, told.finish, one.field)
            _check_rewards(one.outcomes, one.field)

    def rollouts(self, given: Sequence[ImportedRollout]) -> RolloutsImported:
        """Take rollouts in that were checked, tree by tree, each in one transaction.

        Raises:
            FailedPrecondition: one lacks an outcome that its tree needs and cannot be graded here.

        """
        by_tree: dict[tuple[str, str], dict[bytes, ImportedRollout]] = {}
        for one in given:
            key = (one.policy_id, one.question_id)
            # The same twice in one request is once.
            by_tree.setdefault(key, {}).setdefault(one.finished.uid, one)
        added = 0
        merged = [0, 0, 0, 0]
        for (policy_id, question_id), part in by_tree.items():
            policy = self._catalog.get_policy(policy_id)
            question = self._catalog.get_question(question_id)
            result, found = self._one_tree(policy, question, part)
            added += len(result.inserted)
            counts = (
                found.known, found.different, found.outcomes_added, found.outcomes_different
            )  # fmt: skip
            merged = [a + b for a, b in zip(merged, counts, strict=True)]
        return RolloutsImported(added, Merged(*merged))

    def _one_tree(
        self, policy: Policy, question: Question, part: Mapping[bytes, ImportedRollout]
    ) -> tuple[AddResult, Merged]:
        ref = self._trees.open_tree(policy.id, question.id)
        self._activate(policy, question, ref)
        offered = {
            uid: Offered(
                tokens_digest(one.finished.tokens), one.finished.forced_depth, one.outcomes
            )
            for uid, one in part.items()
        }
        found: list[Merged] = []

        def inside(connection: Connection, result: AddResult, _: object) -> None:
            # After a transient error this runs again, in the new transaction.
            found[:] = [merge_offered(connection, ref.id, offered, set(result.inserted))]

        result = self._recorder.record(
            policy,
            question,
            ref,
            [one.finished for one in part.values()],
            then=inside,
            given=[one.outcomes for one in part.values()],
        )
        return result, found[0]

    def _activate(self, policy: Policy, question: Question, ref: TreeRef) -> None:
        """A new tree counts by the question's verifier from the start, as those made here do."""
        if question.verifier.externals or question.verifier.key in self._trees.verifiers(ref.id):
            return
        self._recorder.regrade(policy, question, ref, question.verifier)

    def trajectories(self, given: Sequence[ImportedTrajectory]) -> tuple[int, int]:
        """Take trajectories in. Returns how many are new, and how many were here.

        Raises:
            InvalidArgument: one contradicts itself.
            NotFound: its policy or question is not here.
            FailedPrecondition: the rollout that one is is not here.

        """
        there = self._catalog.trajectories.find([one.trajectory.id for one in given])
        new: dict[str, Trajectory] = {}
        now = time.time()
        for i, one in enumerate(given):
            self._check_trajectory(one)
            if one.trajectory.id not in there:
                new.setdefault(
                    one.trajectory.id, replace(one.trajectory, created_at=now + i * 1e-6)
                )
        self._check_rollouts(new)
        self._catalog.trajectories.add_many(list(new.values()))
        return len(new), len(given) - len(new)

    def _check_trajectory(self, one: ImportedTrajectory) -> None:
        told = one.trajectory
        policy = self._catalog.get_policy(told.policy_id)
        self._catalog.get_question(told.question_id)
        if told.rollout_uid is not None and told.seed is not None and told.ordinal is not None:
            check_path(policy, told.tokens, 0, told.finish, one.field)
            expected = sampled_id(policy.id, told.question_id, told.seed, told.ordinal)
        elif told.rollout_uid is None and told.seed is None and told.ordinal is None:
            for i, token in enumerate(told.tokens):
                if not 0 <= token < policy.model.vocab_size:
                    raise InvalidArgument(
                        f"{one.field}.tokens[{i}]", f"token id {token} is not in the vocabulary"
                    )
            if not 1 <= len(told.tokens) <= policy.max_new_tokens:
                raise InvalidArgument(
                    f"{one.field}.tokens", f"not 1 to {policy.max_new_tokens} of them"
                )
            expected = submitted_id(policy.id, told.question_id, told.finish, told.tokens)
        else:
            raise InvalidArgument(
                one.field, "has only some of rollout_id, seed and ordinal; a sampled one has all"
            )
        if told.id != expected:
            raise InvalidArgument(f"{one.field}.id", f"{told.id[:50]!r} should be {expected}")
        _check_rewards(told.rewards, one.field)

    def _check_rollouts(self, new: Mapping[str, Trajectory]) -> None:
        """A sampled trajectory's own outcome is taken off the counts: it must be in them."""
        uids = {t.rollout_uid: t for t in new.values() if t.rollout_uid is not None}
        there = self._outcomes.digests(list(uids))
        for uid, trajectory in uids.items():
            if uid not in there:
                raise FailedPrecondition(
                    Reason.RECORD_UNDESCRIBED,
                    f"trajectory {trajectory.id} is rollout {uid.hex()}, which is not here: import "
                    "the rollouts first",
                    kind="rollout",
                    name=uid.hex(),
                )
            if there[uid] != tokens_digest(trajectory.tokens):
                raise FailedPrecondition(
                    Reason.ROLLOUT_DIFFERS,
                    f"trajectory {trajectory.id} is rollout {uid.hex()}, which has other tokens "
                    "here",
                    rollout=uid.hex(),
                )


def _check_rewards(rewards: Mapping[int, float], field: str) -> None:
    for key, reward in rewards.items():
        try:
            check_reward(reward, key)
        except ValueError as error:
            raise InvalidArgument(f"{field}.outcomes", str(error)) from None
