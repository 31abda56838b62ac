"""Trajectories: sampled from a policy, or brought along."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass

from sqlalchemy import Connection

from unmask_server.catalog import Catalog, check_token_ids
from unmask_server.catalog.errors import InvalidArgument
from unmask_server.catalog.types import Policy, Question, Trajectory
from unmask_server.growth.outcomes import LENGTH, STOP
from unmask_server.growth.quota import Sampled
from unmask_server.growth.recorder import Finished, Recorder, rollout_uid
from unmask_server.growth.rounds import FLUSH_ROLLOUTS, FLUSH_SECONDS
from unmask_server.growth.sampler import Sampler, Wanted
from unmask_server.locks import KeyedLocks
from unmask_server.telemetry import tracing
from unmask_server.tree import AddResult

UNKNOWN = 2
"""A finish that nobody told."""

Counting = Callable[[int, int], AbstractAsyncContextManager[Sampled]]

Made = tuple[str, Question, int, Finished]
"""A trajectory's id, its question, which of its seed's it is, and what was sampled."""


@dataclass(frozen=True, slots=True)
class SampledTrajectories:
    """What `TrajectoryMaker.sample` returns."""

    trajectories: list[Trajectory]
    """Question by question, in the order asked."""
    sampled: int
    """How many were sampled now."""


class TrajectoryMaker:
    """Makes trajectories. A sampled one is a free rollout of its question's tree as well."""

    def __init__(self, catalog: Catalog, sampler: Sampler, recorder: Recorder) -> None:
        self._catalog = catalog
        self._sampler = sampler
        self._recorder = recorder
        self._locks = KeyedLocks()

    async def sample(
        self,
        policy: Policy,
        questions: Sequence[Question],
        count: int,
        seed: int,
        counting: Counting,
    ) -> SampledTrajectories:
        """`count` trajectories a question; those of the same seed that are there are returned.

        They are stored as they finish, so that a client that gives up finds them the next time.

        Args:
            policy: whose.
            questions: of what.
            count: of each.
            seed: tells those of one seed from those of another.
            counting: a context to sample within, made from the rollouts and tokens it may take.

        Raises:
            FailedPrecondition: a question's verifier cannot grade here, and there is any to sample.

        """
        by_id = {
            sampled_id(policy.id, question.id, seed, ordinal): (question, ordinal)
            for question in questions
            for ordinal in range(count)
        }
        ids = list(by_id)
        # The same asked for twice at once is sampled once: the second waits, and finds it.
        async with self._locks.holding_all(f"{policy.id} {q.id}" for q in questions):
            found = await asyncio.to_thread(self._catalog.trajectories.find, ids)
            missing = [i for i in ids if i not in found]
            for question in {by_id[i][0].id: by_id[i][0] for i in missing}.values():
                self._recorder.check_ready(question.verifier)
            if missing:
                budget = (len(missing), len(missing) * policy.max_new_tokens)
                with tracing.span("trajectories.sample", trajectories=len(missing)):
                    async with counting(*budget) as sampled:
                        await self._sample(policy, seed, [(i, *by_id[i]) for i in missing], sampled)
        if missing:
            found = await asyncio.to_thread(self._catalog.trajectories.find, ids)
        return SampledTrajectories([found[i] for i in ids], len(missing))

    async def _sample(
        self,
        policy: Policy,
        seed: int,
        missing: Sequence[tuple[str, Question, int]],
        sampled: Sampled,
    ) -> None:
        wanted = []
        for trajectory_id, question, _ in missing:
            prompt = await asyncio.to_thread(self._catalog.prompt_tokens, policy, question)
            wanted.append(Wanted(rollout_uid("trajectory", trajectory_id), prompt, ()))
        buffer: list[Made] = []
        flushed = time.monotonic()
        samples = self._sampler.sample(policy, wanted)
        try:
            async with aclosing(samples):
                async for index, finished, _ in samples:
                    buffer.append((*missing[index], finished))
                    sampled.rollouts += 1
                    sampled.tokens += len(finished.tokens)
                    waited = time.monotonic() - flushed
                    if waited >= FLUSH_SECONDS or len(buffer) >= FLUSH_ROLLOUTS:
                        full, buffer = buffer, []
                        await asyncio.to_thread(self._store_all, policy, seed, full)
                        flushed = time.monotonic()
        finally:
            if buffer:
                rest = asyncio.to_thread(self._store_all, policy, seed, buffer)
                await asyncio.shield(asyncio.ensure_future(rest))

    def _store_all(self, policy: Policy, seed: int, made: Sequence[Made]) -> None:
        by_question: dict[str, tuple[Question, list[tuple[str, int, Finished]]]] = {}
        for trajectory_id, question, ordinal, finished in made:
            _, done = by_question.setdefault(question.id, (question, []))
            done.append((trajectory_id, ordinal, finished))
        for question, done in by_question.values():
            self._store(policy, question, seed, done)

    def _store(
        self,
        policy: Policy,
        question: Question,
        seed: int,
        done: Sequence[tuple[str, int, Finished]],
    ) -> None:
        ref = self._recorder.tree(policy, question, question.verifier)

        def keep(connection: Connection, _: AddResult, rewards: Sequence[dict[int, float]]) -> None:
            for (trajectory_id, ordinal, finished), reward in zip(done, rewards, strict=True):
                self._catalog.trajectories.add(
                    Trajectory(
                        id=trajectory_id,
                        policy_id=policy.id,
                        question_id=question.id,
                        tokens=finished.tokens,
                        finish=finished.finish,
                        seed=seed,
                        ordinal=ordinal,
                        rollout_uid=finished.uid,
                        rewards=reward,
                        created_at=time.time(),
                    ),
                    connection,
                )

        self._recorder.record(policy, question, ref, [f for *_, f in done], then=keep)

    def submit(
        self,
        policy: Policy,
        question: Question,
        *,
        tokens: Sequence[int] | None,
        text: str | None,
        finish: int | None,
    ) -> Trajectory:
        """Keep a generation from elsewhere. It is graded, but enters no estimate.

        Raises:
            InvalidArgument: it is empty, too long, has an id out of range, or goes on after a stop
                token.

        """
        tokenizer = self._catalog.tokenizer(policy.model)
        field = "tokens.ids"
        if tokens is None:
            field = "text"
            tokens = tokenizer.encode(text or "")
        if not tokens:
            raise InvalidArgument(field, "the generation is empty; give at least one token")
        check_token_ids(field, tokens, policy.model.vocab_size, tokenizer)
        path = tuple(tokens)
        if len(path) > policy.max_new_tokens:
            raise InvalidArgument(
                field,
                f"the generation has {len(path)} tokens, but the policy's are cut off after "
                f"{policy.max_new_tokens}",
            )
        for i, token in enumerate(path[:-1]):
            if token in policy.stop_ids:
                raise InvalidArgument(
                    f"{field}[{i}]", f"token {token} ends a generation, but more tokens follow"
                )
        ends = path[-1] in policy.stop_ids
        if finish is None:
            finish = STOP if ends else UNKNOWN
        if finish == STOP and not ends:
            raise InvalidArgument(
                "finish_reason", "STOP, but the last token is no stop token of the policy"
            )
        # A generation that nobody cut off is graded as it stands.
        graded_as = LENGTH if finish == LENGTH else STOP
        reward = self._recorder.grade(policy, question, question.verifier, [(path, graded_as)])[0]
        trajectory_id = submitted_id(policy.id, question.id, finish, path)
        return self._catalog.trajectories.add(
            Trajectory(
                id=trajectory_id,
                policy_id=policy.id,
                question_id=question.id,
                tokens=path,
                finish=finish,
                seed=None,
                ordinal=None,
                rollout_uid=None,
                rewards={question.verifier.key: reward},
                created_at=time.time(),
            )
        )


def submitted_id(policy_id: str, question_id: str, finish: int, tokens: Sequence[int]) -> str:
    """The id of a trajectory that was brought along."""
    return "trj-" + rollout_uid("submitted", policy_id, question_id, finish, *tokens).hex()[:24]


def sampled_id(policy_id: str, question_id: str, seed: int, ordinal: int) -> str:
    """The id of a sampled trajectory."""
    return "trj-" + rollout_uid("sampled", policy_id, question_id, seed, ordinal).hex()[:24]
