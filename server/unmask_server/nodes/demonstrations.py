"""The student's own correct rollout, for teachers that are shown it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

from unmask_server.catalog import Catalog
from unmask_server.catalog.errors import FailedPrecondition
from unmask_server.catalog.templates import uses_own_correct
from unmask_server.catalog.tokenizer import without_stop
from unmask_server.catalog.types import Policy, Question, Teacher, Verifier
from unmask_server.nodes.resolve import Demonstration, NodeSet
from unmask_server.reasons import Reason
from unmask_server.tree import TreeRef, TreeStore, VerifiersDifferError

OpenTree = Callable[[Policy, Question, Verifier], TreeRef]
"""Returns the tree of a policy and a question, with everything in it graded by a verifier."""


def shows_own(teacher: Teacher) -> bool:
    """Whether a teacher is shown the student's own correct rollout."""
    scored = teacher.scored
    return scored is not None and uses_own_correct(scored.template)


class Demonstrations:
    """Chooses them: the first correct free rollout of a tree, which stays the first for ever."""

    def __init__(self, catalog: Catalog, open_tree: OpenTree, trees: TreeStore) -> None:
        self._catalog = catalog
        self._open_tree = open_tree
        self._trees = trees

    async def attach(self, nodes: NodeSet, teachers: Sequence[Teacher]) -> NodeSet:
        """The nodes with the demonstration that some teacher is shown, if one is.

        A trajectory is never shown itself, nor another rollout of the same tokens.

        Raises:
            FailedPrecondition: there is no correct rollout yet.

        """
        if not any(map(shows_own, teachers)):
            return nodes
        chosen = await asyncio.to_thread(
            self._choose,
            nodes.policy,
            nodes.question,
            nodes.verifier,
            nodes.tokens if nodes.trajectory is not None else None,
        )
        return replace(nodes, demonstration=chosen)

    def text(self, policy: Policy, question: Question, verifier: Verifier) -> str:
        """The text of the first correct rollout. Raises: as `attach`."""
        return self._choose(policy, question, verifier, None).text

    def _choose(
        self,
        policy: Policy,
        question: Question,
        verifier: Verifier,
        without: tuple[int, ...] | None,
    ) -> Demonstration:
        tree, asked = self._open_tree(policy, question, verifier), verifier
        if not verifier.kind.compares:
            # Nothing it says is "correct".
            verifier = question.verifier
            tree = self._open_tree(policy, question, verifier)
        found = self._trees.first_correct(tree.id, verifier.key, without=without)
        if found is not None and asked.key not in found.rewards:
            raise VerifiersDifferError("rollouts were added that have no number")
        if found is None:
            raise FailedPrecondition(
                Reason.NO_CORRECT_ROLLOUT,
                f"no correct rollout of policy {policy.id} for question {question.id} is known "
                f"under verifier {verifier.id}, which the context own_correct shows: sample "
                "trajectories first (SampleTrajectories)",
                policy=policy.id,
                question=question.id,
            )
        kept = without_stop(found.tokens, policy.stop_ids)
        text = self._catalog.tokenizer(policy.model).decode(kept)
        return Demonstration(found, text.strip())
