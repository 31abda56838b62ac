"""Finished rollouts, graded and stored."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from sqlalchemy import Connection

from unmask_server.catalog import Catalog, Grader
from unmask_server.catalog.types import Policy, Question, Trajectory, Verifier, VerifierKind
from unmask_server.engines.base import FinishReason
from unmask_server.growth.outcomes import LENGTH, STOP, Outcomes, unnumbered
from unmask_server.remembered import Remembered
from unmask_server.tree import (
    AddResult,
    NewRollout,
    OutcomeStore,
    StoredRollout,
    TreeRef,
    TreeStore,
    VerifiersDifferError,
)

_REMEMBERED = 100_000
"""Trees, and verifiers of trees, kept in memory."""

FINISH_CODES = {FinishReason.STOP: STOP, FinishReason.LENGTH: LENGTH}


@dataclass(frozen=True, slots=True)
class Finished:
    """A rollout that ended."""

    uid: bytes
    tokens: tuple[int, ...]
    """All generated tokens, the forced ones included."""
    forced_depth: int
    finish: int


def rollout_uid(*parts: str | int) -> bytes:
    """A rollout's identity, 16 bytes: the same work done again is the same rollout."""
    text = "\x1f".join(str(part) for part in parts)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def seed_of(uid: bytes) -> int:
    """The sampling seed of a rollout, in [0, 2^63): different for every rollout."""
    return int.from_bytes(uid[:8], "little") >> 1


Then = Callable[[Connection, AddResult, list[dict[int, float]]], None]
"""What runs in the transaction that stores rollouts; it gets their rewards by verifier key."""


class Recorder:
    """Grades and stores. Synchronous: called from threads.

    Outcomes belong to a rollout and a verifier. Every rollout of a tree is graded by every verifier
    that the tree was ever asked about, so a verifier's statistics never lack a rollout. Those that
    need a client's numbers cannot be: their statistics end with the next new rollout.
    """

    def __init__(
        self,
        catalog: Catalog,
        trees: TreeStore,
        outcomes: OutcomeStore,
        grader: Grader,
        on_change: Callable[[int, int], None],
    ) -> None:
        self._catalog = catalog
        self._trees = trees
        self._store = outcomes
        self._outcomes = Outcomes(catalog, outcomes, grader)
        self._on_change = on_change
        self._refs = Remembered[tuple[str, str], TreeRef](_REMEMBERED)
        self._active = Remembered[tuple[int, int], bool](_REMEMBERED)

    def tree(self, policy: Policy, question: Question, verifier: Verifier) -> TreeRef:
        """The tree of a policy and a question, with everything in it graded by `verifier`.

        Raises:
            FailedPrecondition: see `check_ready`; or rollouts lack a client's number.

        """
        self.check_ready(verifier)
        key = (policy.id, question.id)
        ref = self._refs.get(key)
        if ref is None:
            ref = self._refs.put(key, self._trees.open_tree(*key))
        if verifier.externals or not self._active.get((ref.id, verifier.key)):
            self.regrade(policy, question, ref, verifier)
        return ref

    def check_ready(self, verifier: Verifier) -> None:
        """Refuse what could not be graded, before anything is sampled: as `Grader.check_ready`."""
        self._outcomes.check_ready(verifier)

    def regrade(self, policy: Policy, question: Question, ref: TreeRef, verifier: Verifier) -> int:
        """Grade what the tree holds by `verifier`; returns how many were graded now."""
        graded = 0
        if verifier.key not in self._trees.verifiers(ref.id):
            self._outcomes.check_numbers(policy, question, ref.id, verifier)

            def grade(rollouts: list[StoredRollout]) -> list[float]:
                nonlocal graded
                graded += len(rollouts)
                return self._outcomes.of_stored(policy, question, verifier, rollouts)

            self._trees.activate_verifier(ref.id, verifier.key, grade)
            self._note(ref.id)
        self._active.put((ref.id, verifier.key), True)
        return graded

    def grade(
        self,
        policy: Policy,
        question: Question,
        verifier: Verifier,
        paths: Sequence[tuple[tuple[int, ...], int]],
    ) -> list[float]:
        """Rewards of generations, given as (tokens, finish)."""
        return self._outcomes.of_paths(policy, question, [verifier], list(paths))[verifier.key]

    def graded(
        self, policy: Policy, question: Question, verifier: Verifier, trajectory: Trajectory
    ) -> Trajectory:
        """The trajectory with its reward by `verifier`, which is computed once and kept.

        Raises:
            FailedPrecondition: it lacks a client's number.

        """
        if verifier.key in trajectory.rewards:
            return trajectory
        if verifier.terms:
            for part, _ in verifier.terms:
                trajectory = self.graded(policy, question, part, trajectory)
            reward = verifier.weighed([trajectory.rewards[part.key] for part, _ in verifier.terms])
        elif verifier.kind is VerifierKind.EXTERNAL:
            reward = self._number(verifier, trajectory)
        else:
            path = (trajectory.tokens, trajectory.finish)
            reward = self.grade(policy, question, verifier, [path])[0]
        self._catalog.trajectories.record_outcome(trajectory.id, verifier.key, reward)
        return replace(trajectory, rewards={**trajectory.rewards, verifier.key: reward})

    def record(
        self,
        policy: Policy,
        question: Question,
        ref: TreeRef,
        finished: Sequence[Finished],
        *,
        growth_id: str | None = None,
        then: Then | None = None,
        given: Sequence[Mapping[int, float]] = (),
    ) -> AddResult:
        """Grade and store in one transaction; `then` runs inside of it, with the rewards.

        A rollout that is there already (by its uid) changes nothing. What is `given` is not graded:
        rewards by verifier key, one mapping a rollout, from those who know them.
        """
        given = given or [{}] * len(finished)
        while True:
            active = self._trees.verifiers(ref.id)
            lacking = {
                key
                for key in active
                for part in self._catalog.verifier_by_key(key).externals
                if any(part.key not in known for known in given)
            }
            if lacking:
                self._store.deactivate(ref.id, lacking)
                active -= lacking
            rewards = self._rewards(policy, question, sorted(active), finished, given)
            rollouts = [
                NewRollout(f.uid, f.tokens, f.forced_depth, f.finish, row, growth_id)
                for f, row in zip(finished, rewards, strict=True)
            ]
            inside = None if then is None else partial(_call, then, rewards)
            try:
                result = self._trees.add_rollouts(ref.id, rollouts, then=inside)
            except VerifiersDifferError:
                if self._trees.verifiers(ref.id) == active:
                    raise
                # Somebody asked for another verifier while these were being graded.
                continue
            self._on_change(ref.id, result.version)
            return result

    def _rewards(
        self,
        policy: Policy,
        question: Question,
        keys: Sequence[int],
        finished: Sequence[Finished],
        given: Sequence[Mapping[int, float]],
    ) -> list[dict[int, float]]:
        paths = [(f.tokens, f.finish) for f in finished]
        verifiers = [self._catalog.verifier_by_key(key) for key in keys]
        graded = self._outcomes.of_paths(policy, question, verifiers, paths, given)
        return [{key: graded[key][i] for key in keys} for i in range(len(paths))]

    def _number(self, verifier: Verifier, trajectory: Trajectory) -> float:
        uid = trajectory.rollout_uid
        found = None if uid is None else self._store.of_rollout(uid, verifier.key)
        if found is None:
            raise unnumbered(verifier, f"trajectory {trajectory.id}")
        return found

    def _note(self, tree_id: int) -> None:
        self._on_change(tree_id, self._trees.versions([tree_id])[tree_id])


def _call(
    then: Then, rewards: list[dict[int, float]], connection: Connection, result: AddResult
) -> None:
    then(connection, result, rewards)
