"""From names in a request to what they mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from unmask_server.catalog import Catalog, check_token_ids
from unmask_server.catalog.errors import FailedPrecondition, InvalidArgument
from unmask_server.catalog.templates import uses_own_correct
from unmask_server.catalog.types import Policy, Question, Teacher, Trajectory, Verifier
from unmask_server.reasons import Reason
from unmask_server.tree import StoredRollout


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A correct rollout of the student that a teacher is shown."""

    rollout: StoredRollout
    text: str
    """Without its stop token."""


@dataclass(frozen=True, slots=True)
class VerifierRef:
    """What rollouts are to be graded by, as a request names it."""

    name: str = ""
    """Id or name of a verifier; empty for the question's own."""
    terms: tuple[tuple[str, float], ...] = ()
    """Instead: an objective's verifiers, named likewise, with their weights."""
    field: str = ""
    """Of the request, where the terms are."""


OWN = VerifierRef()
"""The question's own verifier."""


@dataclass(frozen=True, slots=True)
class NodeSet:
    """Some nodes along one sequence of tokens of a policy after a question."""

    policy: Policy
    question: Question
    verifier: Verifier
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    """Generated tokens; the node at position t has the prefix tokens[:t]."""
    positions: tuple[int, ...]
    """Ascending, each in [0, len(tokens)]."""
    observed: tuple[int | None, ...]
    """The token in question at each position, if there is one."""
    trajectory: Trajectory | None
    """The trajectory these are nodes of, if they were named by one; graded by `verifier`."""
    demonstration: Demonstration | None = None
    """Where a teacher is shown one: it is left out of the estimates at its own nodes."""
    dispersion: float = 1.0
    """Of the rewards, see `Moments.dispersion`."""


GradeTrajectory = Callable[[Policy, Question, Verifier, Trajectory], Trajectory]
"""Returns the trajectory with its reward by that verifier."""


class Resolver:
    """Looks names up and checks what can be checked before anything is computed.

    Synchronous: called from threads. Raises the errors of `catalog.errors`.
    """

    def __init__(self, catalog: Catalog, grade: GradeTrajectory) -> None:
        self._catalog = catalog
        self._grade = grade

    def trajectory(
        self,
        trajectory_id: str,
        *,
        positions: Sequence[int] | None,
        verifier: VerifierRef,
        field: str,
        position_field: str = "positions",
    ) -> NodeSet:
        """Nodes of a trajectory: all of them, or those at `positions`."""
        if not trajectory_id:
            raise InvalidArgument(field, "give the id of a trajectory")
        found = self._catalog.trajectories.get(trajectory_id)
        length = len(found.tokens)
        chosen = range(length) if positions is None else sorted(set(positions))
        for position in chosen:
            if not 0 <= position < length:
                raise InvalidArgument(
                    position_field,
                    f"position {position} is not in the trajectory: it has {length} tokens, "
                    f"so positions are 0 to {length - 1}",
                )
        policy = self._catalog.get_policy(found.policy_id)
        question = self._catalog.get_question(found.question_id)
        chosen_verifier = self.graded_by(verifier, question)
        found = self._grade(policy, question, chosen_verifier, found)
        return NodeSet(
            policy=policy,
            question=question,
            verifier=chosen_verifier,
            prompt=self._catalog.prompt_tokens(policy, question),
            tokens=found.tokens,
            positions=tuple(chosen),
            observed=tuple(found.tokens[t] for t in chosen),
            trajectory=found,
        )

    def prefix(
        self,
        policy_name: str,
        question_name: str,
        *,
        tokens: Sequence[int] | None,
        text: str | None,
        observed: int | None,
        verifier: VerifierRef,
        field: str,
    ) -> NodeSet:
        """The node after `tokens` (or `text`, tokenised)."""
        policy = self.policy(policy_name, f"{field}.policy")
        question = self.question(question_name, f"{field}.question")
        tokenizer = self._catalog.tokenizer(policy.model)
        ids_field = f"{field}.tokens.ids"
        if tokens is None:
            ids_field = f"{field}.text"
            tokens = tokenizer.encode(text) if text else ()
        check_token_ids(ids_field, tokens, policy.model.vocab_size, tokenizer)
        prefix = tuple(tokens)
        if observed is not None:
            try:
                check_token_ids("", (observed,), policy.model.vocab_size, tokenizer)
            except InvalidArgument as error:
                raise InvalidArgument(f"{field}.observed_token", error.description) from None
        if any(token in policy.stop_ids for token in prefix):
            place = next(i for i, token in enumerate(prefix) if token in policy.stop_ids)
            raise InvalidArgument(
                f"{ids_field}[{place}]",
                f"token {prefix[place]} ends a generation, so nothing comes after it; "
                "cut the prefix before it",
            )
        if len(prefix) >= policy.max_new_tokens:
            raise InvalidArgument(
                ids_field,
                f"the prefix has {len(prefix)} tokens, but the policy's generations are cut off "
                f"after {policy.max_new_tokens}",
            )
        return NodeSet(
            policy=policy,
            question=question,
            verifier=self.graded_by(verifier, question),
            prompt=self._catalog.prompt_tokens(policy, question),
            tokens=prefix,
            positions=(len(prefix),),
            observed=(observed,),
            trajectory=None,
        )

    def policy(self, name: str, field: str) -> Policy:
        """The policy of that id or name."""
        if not name:
            raise InvalidArgument(field, "give the id or name of a policy")
        return self._catalog.get_policy(name)

    def question(self, name: str, field: str) -> Question:
        """The question of that id or name."""
        if not name:
            raise InvalidArgument(field, "give the id or name of a question")
        return self._catalog.get_question(name)

    def graded_by(self, wanted: VerifierRef, question: Question) -> Verifier:
        """The verifier, or the one that the objective is.

        Raises:
            InvalidArgument: the terms are no objective.
            FailedPrecondition: it, or one of its terms, could grade nothing by this question.

        """
        if not wanted.terms:
            return self.verifier(wanted.name, question)
        terms = [(self.verifier(name, question), weight) for name, weight in wanted.terms]
        return self._catalog.objective(terms, wanted.field)

    def verifier(self, name: str, question: Question) -> Verifier:
        """The verifier of that id or name; the question's own if it is empty.

        Raises:
            FailedPrecondition: it could grade nothing by this question's answer.

        """
        if not name:
            return question.verifier
        found = self._catalog.get_verifier(name)
        if problem := self._catalog.ungradeable(found, question):
            raise FailedPrecondition(
                Reason.VERIFIER_CANNOT_GRADE,
                f"verifier {found.name or found.id} cannot grade question {question.id}: {problem}",
                verifier=found.id,
                question=question.id,
            )
        return found

    def check_teachers(self, teachers: Sequence[Teacher], question: Question, room: int) -> None:
        """Refuse teachers that cannot be shown a question and `room` tokens after it."""
        for i, teacher in enumerate(teachers):
            scored = teacher.scored
            # What shows a rollout of the student is checked when that is known.
            if scored is None or scored.stored is not None:
                continue
            if not uses_own_correct(scored.template):
                shown_prompt(self._catalog, teacher, question, room, i)

    def teachers(self, names: Sequence[str], policy: Policy) -> list[Teacher]:
        """Teachers whose tokenizer is the policy's.

        Raises:
            FailedPrecondition: a teacher has another tokenizer, so its probabilities of the
                student's token ids mean nothing.

        """
        found: list[Teacher] = []
        for i, name in enumerate(names):
            teacher = self._catalog.get_teacher(name)
            if differences := self._catalog.tokenizer_differences(policy.model, teacher.model):
                raise FailedPrecondition(
                    Reason.TOKENIZER_MISMATCH,
                    f"teacher {teacher.id} has another tokenizer than policy "
                    f"{policy.id}: {'; '.join(differences)}",
                    field=f"teachers[{i}]",
                    policy=policy.id,
                    teacher=teacher.id,
                )
            if teacher.id in {t.id for t in found}:
                raise InvalidArgument(f"teachers[{i}]", f"teacher {name!r} is named twice")
            found.append(teacher)
        return found


def shown_prompt(
    catalog: Catalog,
    teacher: Teacher,
    question: Question,
    room: int,
    index: int,
    demonstration: Demonstration | None = None,
) -> tuple[int, ...]:
    """The prompt of a request's teacher number `index` for a question; a control's is its base's.

    Raises:
        FailedPrecondition: they do not go together: the question lacks a field that the context
            needs, or the prompt and `room` tokens more do not fit the model.

    """
    try:
        own = None if demonstration is None else demonstration.text
        return catalog.teacher_prompt(teacher, question, room, own=own).tokens
    except InvalidArgument as error:
        raise FailedPrecondition(
            Reason.CONTEXT_NOT_SHOWABLE, str(error), field=f"teachers[{index}]"
        ) from None
    except FailedPrecondition as error:
        raise FailedPrecondition(
            error.reason, str(error), field=f"teachers[{index}]", **error.metadata
        ) from None
