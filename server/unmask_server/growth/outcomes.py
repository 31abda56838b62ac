"""From a generation to its reward, whatever kind of verifier it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from unmask_server.catalog import Catalog, Grader
from unmask_server.catalog.errors import FailedPrecondition
from unmask_server.catalog.tokenizer import without_stop
from unmask_server.catalog.types import Policy, Question, Verifier, VerifierKind
from unmask_server.catalog.verifiers import reference_of
from unmask_server.engines.base import FinishReason
from unmask_server.reasons import Reason
from unmask_server.tree import OutcomeStore, StoredRollout

STOP, LENGTH = 0, 1
"""How `FinishReason` is stored."""

Path = tuple[tuple[int, ...], int]
"""A generation: its tokens and how it finished."""


class Outcomes:
    """Rewards of generations; of stored ones without grading again what was graded before."""

    def __init__(self, catalog: Catalog, outcomes: OutcomeStore, grader: Grader) -> None:
        self._catalog = catalog
        self._store = outcomes
        self._grader = grader

    def check_ready(self, verifier: Verifier) -> None:
        """Refuse what could not be graded: as `Grader.check_ready`."""
        self._grader.check_ready(verifier)

    def of_paths(
        self,
        policy: Policy,
        question: Question,
        verifiers: Sequence[Verifier],
        paths: list[Path],
        given: Sequence[Mapping[int, float]] = (),
    ) -> dict[int, list[float]]:
        """Rewards of generations by verifier key; what several objectives share is graded once.

        Args:
            policy: whose.
            question: on which.
            verifiers: by which.
            paths: the generations.
            given: rewards that are known already, by verifier key, one mapping a path; empty: none.

        Raises:
            FailedPrecondition: an EXTERNAL one is among them that is not given.

        """
        given = given or [{}] * len(paths)
        found: dict[int, list[float]] = {}
        for verifier in verifiers:
            parts = [part for part, _ in verifier.terms] or [verifier]
            for part in parts:
                if part.key not in found:
                    found[part.key] = self._completed(policy, question, part, paths, given)
            if verifier.terms:
                found[verifier.key] = _weighed(verifier, found)
        return {verifier.key: found[verifier.key] for verifier in verifiers}

    def _completed(
        self,
        policy: Policy,
        question: Question,
        verifier: Verifier,
        paths: Sequence[Path],
        given: Sequence[Mapping[int, float]],
    ) -> list[float]:
        missing = [i for i, known in enumerate(given) if verifier.key not in known]
        graded: list[float] = []
        if missing:
            graded = self._graded(policy, question, verifier, [paths[i] for i in missing])
        fresh = dict(zip(missing, graded, strict=True))
        return [fresh[i] if i in fresh else known[verifier.key] for i, known in enumerate(given)]

    def of_stored(
        self,
        policy: Policy,
        question: Question,
        verifier: Verifier,
        rollouts: Sequence[StoredRollout],
    ) -> list[float]:
        """Rewards of rollouts of a tree, in the order of their ids.

        Raises:
            FailedPrecondition: some have no number of an EXTERNAL one.

        """
        parts = [part for part, _ in verifier.terms] or [verifier]
        found: dict[int, list[float]] = {}
        for part in parts:
            known = self._store.read(part.key, rollouts[0].id, rollouts[-1].id)
            missing = [r for r in rollouts if r.id not in known]
            paths = [(r.tokens, r.finish) for r in missing]
            graded = self._graded(policy, question, part, paths) if missing else []
            known |= {r.id: reward for r, reward in zip(missing, graded, strict=True)}
            found[part.key] = [known[r.id] for r in rollouts]
        return _weighed(verifier, found) if verifier.terms else found[verifier.key]

    def check_numbers(
        self, policy: Policy, question: Question, tree_id: int, verifier: Verifier
    ) -> None:
        """Refuse a verifier where rollouts of a tree lack a client's number.

        Raises:
            FailedPrecondition: so they do; it says what to do.

        """
        for part in verifier.externals:
            if lacking := self._store.lacking(tree_id, part.key):
                raise FailedPrecondition(
                    Reason.OUTCOMES_MISSING,
                    f"{lacking} rollouts of policy {policy.id} for question {question.id} have no "
                    f"number of verifier {part.name or part.id} yet: ListRollouts with "
                    "`missing_outcome_of` gives their texts, PutOutcomes takes the numbers",
                    verifier=part.id,
                )

    def _graded(
        self, policy: Policy, question: Question, verifier: Verifier, paths: Sequence[Path]
    ) -> list[float]:
        if verifier.kind is VerifierKind.EXTERNAL:
            raise unnumbered(verifier, "a generation")
        kept = [without_stop(tokens, policy.stop_ids) for tokens, _ in paths]
        if verifier.kind is VerifierKind.LENGTH:
            limit = int(verifier.options["limit"])
            return [min(1.0, len(tokens) / limit) for tokens in kept]
        tokenizer = self._catalog.tokenizer(policy.model)
        items = [
            (
                tokenizer.decode(tokens),
                reference_of(verifier, question.fields),
                FinishReason.LENGTH if finish == LENGTH else FinishReason.STOP,
            )
            for tokens, (_, finish) in zip(kept, paths, strict=True)
        ]
        return self._grader.grade_many(verifier, items)


def unnumbered(verifier: Verifier, what: str) -> FailedPrecondition:
    """The error for a generation without a client's number."""
    return FailedPrecondition(
        Reason.OUTCOMES_MISSING,
        f"{what} has no number of verifier {verifier.name or verifier.id} yet: give it by "
        "PutOutcomes",
        verifier=verifier.id,
    )


def _weighed(verifier: Verifier, found: dict[int, list[float]]) -> list[float]:
    columns = [found[part.key] for part, _ in verifier.terms]
    return [verifier.weighed(row) for row in zip(*columns, strict=True)]
