"""Generations that a trainer sampled, taken in as free rollouts of the policy that made them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from unmask_server.catalog import Catalog, check_token_ids
from unmask_server.catalog.errors import AlreadyExists, FailedPrecondition, InvalidArgument
from unmask_server.catalog.types import Policy, Question, Verifier
from unmask_server.growth.fit import Fit, PolicyFit, Scorable, refuse
from unmask_server.growth.outcomes import LENGTH, STOP
from unmask_server.growth.paths import check_path
from unmask_server.growth.prompt_index import PromptIndex
from unmask_server.growth.recorder import Finished, Recorder, rollout_uid
from unmask_server.reasons import Reason
from unmask_server.tree import AddResult, Offered, merge_offered, tokens_digest

_INDICES = 4
"""Indices of prompts that are remembered."""
_PAGE = 1000


@dataclass(frozen=True, slots=True)
class Told:
    """A generation as a trainer's file tells it; see TrainerGeneration in the contract."""

    field: str
    """Of the request, for errors."""
    question: str
    prompt_tokens: tuple[int, ...]
    prompt_text: str
    tokens: tuple[int, ...]
    text: str | None
    """Where there are no tokens."""
    finish: int | None
    """None: nobody told."""
    logprobs: tuple[float, ...]
    reward: float | None
    ordinal: int


@dataclass(frozen=True, slots=True)
class Wished:
    """What is to be done with generations."""

    run: str
    questions: tuple[str, ...]
    """Among which prompts are looked for; empty: all."""
    verifier: Verifier | None
    """Of kind EXTERNAL, to keep the rewards under."""
    allow_text: bool
    tolerance: float
    """In nats; see `Fit.problem`."""
    scored: int
    """How many are scored."""
    validate_only: bool


@dataclass(frozen=True, slots=True)
class Taken:
    """What `GenerationImporter.take` did."""

    added: int
    known: int
    fit: Fit


@dataclass(frozen=True, slots=True)
class _Read:
    told: Told
    question: Question
    tokens: tuple[int, ...]
    finish: int


class GenerationImporter:
    """Checks a trainer's generations against the policy, and stores them."""

    def __init__(self, catalog: Catalog, recorder: Recorder, fit: PolicyFit) -> None:
        self._catalog = catalog
        self._recorder = recorder
        self._fit = fit
        self._indices: dict[tuple[str, ...], PromptIndex] = {}

    async def take(self, policy: Policy, given: Sequence[Told], wished: Wished) -> Taken:
        """Take generations in: all are checked before one is stored.

        Raises:
            InvalidArgument: one contradicts itself.
            FailedPrecondition: one is not the policy's.
            AlreadyExists: one was taken in with another reward.
            EngineError: the policy's model cannot run now.

        """
        read = await asyncio.to_thread(self._read_all, policy, given, wished)
        # Spread over all of them.
        chosen = [read[i * len(read) // wished.scored] for i in range(wished.scored)]
        scorable = await asyncio.to_thread(
            lambda: [
                Scorable(
                    self._catalog.prompt_tokens(policy, one.question), one.tokens, one.told.logprobs
                )
                for one in chosen
            ]
        )
        fit = await self._fit.measure(policy, scorable)
        refuse(fit, policy, wished.tolerance)
        added = 0
        if not wished.validate_only:
            added = await asyncio.to_thread(self._store, policy, read, wished)
        return Taken(added, 0 if wished.validate_only else len(read) - added, fit)

    # ------------------------------------------------------------------------------ reading

    def _read_all(self, policy: Policy, given: Sequence[Told], wished: Wished) -> list[_Read]:
        index = self._index(policy, wished.questions)
        return [self._read(policy, told, index, wished) for told in given]

    def _read(self, policy: Policy, told: Told, index: PromptIndex, wished: Wished) -> _Read:
        tokenizer = self._catalog.tokenizer(policy.model)
        vocab = policy.model.vocab_size
        check_token_ids(f"{told.field}.prompt_tokens", told.prompt_tokens, vocab, tokenizer)
        check_token_ids(f"{told.field}.tokens", told.tokens, vocab, tokenizer)
        prompt_field = f"{told.field}.prompt_{'tokens' if told.prompt_tokens else 'text'}"
        if told.question:
            question = self._catalog.get_question(told.question)
            index.check(question, told.prompt_tokens, told.prompt_text, prompt_field)
        elif told.prompt_tokens or told.prompt_text:
            question = index.find(told.prompt_tokens, told.prompt_text, prompt_field)
        else:
            raise InvalidArgument(f"{told.field}.question", "give it, or the prompt")
        if told.tokens:
            tokens, finish = told.tokens, _finish(policy, told)
        else:
            tokens, finish = self._tokenised(policy, told, wished.allow_text)
        check_path(policy, tokens, 0, finish, told.field)
        if told.logprobs and len(told.logprobs) != len(told.tokens):
            raise InvalidArgument(
                f"{told.field}.logprobs", f"{len(told.logprobs)} for {len(told.tokens)} tokens"
            )
        if wished.verifier is not None and told.reward is None:
            raise InvalidArgument(f"{told.field}.reward", "is missing, and the rewards are wanted")
        return _Read(told, question, tokens, finish)

    def _tokenised(self, policy: Policy, told: Told, allowed: bool) -> tuple[tuple[int, ...], int]:
        """Tokens of a text; as its end token is not in it, the limit tells how it ended."""
        field = f"{told.field}.text"
        if told.text is None:
            raise InvalidArgument(f"{told.field}.tokens", "the generation is empty")
        if not allowed:
            raise FailedPrecondition(
                Reason.GENERATION_INCOMPLETE,
                "there are only texts, and tokenising a text need not give the tokens that were "
                "sampled: dump token ids, or set allow_text to take that risk",
                field=field,
            )
        tokens = self._catalog.tokenizer(policy.model).encode(told.text)
        if len(tokens) >= policy.max_new_tokens:
            return tokens, LENGTH
        if told.finish == LENGTH:
            raise FailedPrecondition(
                Reason.GENERATION_INCOMPLETE,
                f"was cut off, but has {len(tokens)} tokens and the policy's limit is "
                f"{policy.max_new_tokens}",
                field=field,
            )
        if len(policy.stop_ids) != 1:
            raise FailedPrecondition(
                Reason.GENERATION_INCOMPLETE,
                f"does not say by which of the policy's end tokens it ended "
                f"({list(policy.stop_ids)}): dump token ids",
                field=field,
            )
        return (*tokens, *policy.stop_ids), STOP

    def _index(self, policy: Policy, names: Sequence[str]) -> PromptIndex:
        questions = (
            [self._catalog.get_question(name) for name in names] if names else self._questions()
        )
        key = (policy.id, *(question.id for question in questions))
        if key not in self._indices:
            while len(self._indices) >= _INDICES:
                self._indices.pop(next(iter(self._indices)), None)
            self._indices[key] = PromptIndex(self._catalog, policy, questions)
        return self._indices[key]

    def _questions(self) -> list[Question]:
        found: list[Question] = []
        while page := self._catalog.list_questions(
            _PAGE, (found[-1].created_at, found[-1].id) if found else None
        ):
            found += page
        return found

    # ------------------------------------------------------------------------------ storing

    def _store(self, policy: Policy, read: Sequence[_Read], wished: Wished) -> int:
        by_question: dict[str, dict[bytes, _Read]] = {}
        for one in read:
            uid = rollout_uid(
                "trainer", policy.id, one.question.id, wished.run, one.told.ordinal, *one.tokens
            )
            by_question.setdefault(one.question.id, {}).setdefault(uid, one)
        return sum(
            self._store_question(policy, part, wished.verifier) for part in by_question.values()
        )

    def _store_question(
        self, policy: Policy, part: dict[bytes, _Read], verifier: Verifier | None
    ) -> int:
        question = next(iter(part.values())).question
        ref = self._recorder.tree(policy, question, question.verifier)
        given = [
            {}
            if verifier is None or one.told.reward is None
            else {verifier.key: float(one.told.reward)}
            for one in part.values()
        ]
        offered = {
            uid: Offered(tokens_digest(one.tokens), 0, rewards)
            for (uid, one), rewards in zip(part.items(), given, strict=True)
        }

        def inside(connection: Connection, result: AddResult, _: object) -> None:
            found = merge_offered(connection, ref.id, offered, set(result.inserted))
            if verifier is not None and found.outcomes_different:
                raise AlreadyExists(
                    Reason.OUTCOME_DIFFERS,
                    "generations",
                    f"{found.outcomes_different} of them were taken in with other rewards under "
                    f"verifier {verifier.name or verifier.id}: register one with another `source`",
                    kind="verifier",
                    name=verifier.id,
                )

        finished = [Finished(uid, one.tokens, 0, one.finish) for uid, one in part.items()]
        done = self._recorder.record(policy, question, ref, finished, then=inside, given=given)
        return len(done.inserted)


def _finish(policy: Policy, told: Told) -> int:
    if told.finish is not None:
        return told.finish
    if told.tokens[-1] in policy.stop_ids:
        return STOP
    if len(told.tokens) >= policy.max_new_tokens:
        return LENGTH
    raise FailedPrecondition(
        Reason.GENERATION_INCOMPLETE,
        f"it is not known how the generation ended: its {len(told.tokens)} tokens are fewer than "
        f"the policy's limit, {policy.max_new_tokens}, and the last one is no end token of the "
        "policy",
        field=told.field,
    )
