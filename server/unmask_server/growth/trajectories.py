"""Trajectories: sampled from a policy, or brought along."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing

from sqlalchemy import Connection

from unmask_server.catalog import Catalog, check_token_ids
from unmask_server.catalog.errors import InvalidArgument, NotFound
from unmask_server.catalog.types import Policy, Question, Trajectory
from unmask_server.database.faults import Fault, fault_of
from unmask_server.growth.asked import Asked, Places
from unmask_server.growth.flushing import Put, flushed, to_its_end
from unmask_server.growth.outcomes import LENGTH, STOP
from unmask_server.growth.quota import Sampled
from unmask_server.growth.recorder import Finished, Recorder, rollout_uid
from unmask_server.growth.sampler import Sampler, Wanted
from unmask_server.growth.slices import overlapping
from unmask_server.locks import KeyedLocks
from unmask_server.telemetry import tracing
from unmask_server.tree import AddResult

UNKNOWN = 2
"""A finish that nobody told."""

Counting = Callable[[int, int], AbstractAsyncContextManager[Sampled]]

Made = tuple[int, Finished]
"""A place in the order asked, and what was sampled for it."""

Piece = list[tuple[Trajectory, bool]]
"""Some trajectories, in the order asked, and whether each was sampled now."""

_LOOK = 500
"""So many are looked for in the database at once."""
_READ = 256
"""So many are read at once to be sent, ..."""
_READ_TOKENS = 131_072
"""... fewer where they may be so long together: what a call holds of its answer."""


class TrajectoryMaker:
    """Makes trajectories. A sampled one is a free rollout of its question's tree as well."""

    def __init__(self, catalog: Catalog, sampler: Sampler, recorder: Recorder) -> None:
        self._catalog = catalog
        self._sampler = sampler
        self._recorder = recorder
        self._locks = KeyedLocks()

    async def sample(self, asked: Asked, counting: Counting) -> AsyncGenerator[Piece, None]:
        """Yield what is asked for as it comes to be; those of the same seed that are there are.

        Sampling does not wait for whoever takes the pieces, and its locks are not held for them.
        What is sampled is stored as it is finished, so that a client that gives up finds it the
        next time.

        Args:
            asked: what.
            counting: a context to sample within, made from the rollouts and tokens it may take.

        Raises:
            FailedPrecondition: a question's verifier cannot grade here, and there is any to sample.
            NotFound: one was pruned meanwhile.

        """
        places = Places(len(asked))
        most = max(1, min(_READ, _READ_TOKENS // asked.policy.max_new_tokens))
        work = asyncio.create_task(self._make(asked, places, counting))
        at = 0
        try:
            while at < len(asked):
                stored = await places.following(at, most, work)
                found = await asyncio.to_thread(self._read, asked, stored)
                yield [(one, places.is_new(i)) for i, one in zip(stored, found, strict=True)]
                at = stored.stop
            await work
        finally:
            work.cancel()
            # What was sampled is put away, and counted, before the call is over.
            try:
                await to_its_end(_ended(work))
            finally:
                # Its result was asked for already; a second time the error has no traceback.
                if not work.cancelled() and (error := work.exception()) is not None:
                    raise error

    def _read(self, asked: Asked, places: range) -> list[Trajectory]:
        ids = [asked.id(place) for place in places]
        found = self._catalog.trajectories.find(ids)
        if lost := next((i for i in ids if i not in found), None):
            raise NotFound("trajectory", lost)
        return [found[i] for i in ids]

    async def _make(self, asked: Asked, places: Places, counting: Counting) -> None:
        """Have all of them stored."""
        missing = await self._look(asked, places, range(len(asked)))
        # The same asked for twice at once is sampled once: the second waits, and finds it. Those of
        # another seed are others: whoever asks for them waits for nothing.
        of = asked.by_question(missing)
        keys = [f"{asked.policy.id} {question.id} {asked.seed}" for question, _ in of]
        async with self._locks.holding_all(keys):
            missing = await self._look(asked, places, missing)
            for question, _ in asked.by_question(missing):
                self._recorder.check_ready(question.verifier)
            if missing:
                budget = (len(missing), len(missing) * asked.policy.max_new_tokens)
                with tracing.span("trajectories.sample", trajectories=len(missing)):
                    async with counting(*budget) as sampled:
                        await self._sample(asked, missing, places, sampled)

    async def _look(self, asked: Asked, places: Places, among: Sequence[int]) -> list[int]:
        """Those that are not stored; the others are told to be there."""

        def look(part: Sequence[int]) -> tuple[list[int], list[int]]:
            ids = {place: asked.id(place) for place in part}
            there = self._catalog.trajectories.existing(list(ids.values()))
            found = [place for place in part if ids[place] in there]
            return found, [place for place in part if ids[place] not in there]

        missing: list[int] = []
        for start in range(0, len(among), _LOOK):
            found, lacking = await asyncio.to_thread(look, among[start : start + _LOOK])
            places.found(found)
            missing += lacking
        return missing

    async def _sample(
        self, asked: Asked, missing: Sequence[int], places: Places, sampled: Sampled
    ) -> None:
        wanted: list[Wanted] = []
        for question, part in asked.by_question(missing):
            wanted += await asyncio.to_thread(self._wanted, asked, question, part)

        async def sample(put: Put[Made]) -> None:
            async def one_slice(part: range, one_done: Callable[[], None]) -> None:
                samples = self._sampler.sample(asked.policy, wanted[part.start : part.stop])
                async with aclosing(samples):
                    async for index, finished, _ in samples:
                        sampled.rollouts += 1
                        sampled.tokens += len(finished.tokens)
                        one_done()
                        await put((missing[part[index]], finished))

            await overlapping(len(wanted), one_slice)

        async def store(made: list[Made]) -> None:
            await self._store_all(asked, made, places)

        await flushed(sample, store)

    def _wanted(self, asked: Asked, question: Question, places: Sequence[int]) -> list[Wanted]:
        prompt = self._catalog.prompt_tokens(asked.policy, question)
        return [Wanted(rollout_uid("trajectory", asked.id(place)), prompt, ()) for place in places]

    async def _store_all(self, asked: Asked, made: Sequence[Made], places: Places) -> None:
        """Store a batch, one transaction for each question.

        Those of the other questions are stored though one's cannot be: all were paid for.
        """
        by_place = dict(made)
        first: Exception | None = None
        for question, part in asked.by_question(sorted(by_place)):
            these = [(place, by_place[place]) for place in part]
            try:
                await asyncio.to_thread(self._store, asked, question, these)
            except Exception as error:
                first = first or error
                if fault_of(error) is Fault.AWAY:
                    # It was waited for already, and would be for each of the others.
                    break
            else:
                places.sampled(part)
        if first is not None:
            raise first

    def _store(self, asked: Asked, question: Question, made: Sequence[Made]) -> None:
        policy = asked.policy
        ref = self._recorder.tree(policy, question, question.verifier)

        def keep(connection: Connection, _: AddResult, rewards: Sequence[dict[int, float]]) -> None:
            for (place, finished), reward in zip(made, rewards, strict=True):
                self._catalog.trajectories.add(
                    Trajectory(
                        id=asked.id(place),
                        policy_id=policy.id,
                        question_id=question.id,
                        tokens=finished.tokens,
                        finish=finished.finish,
                        seed=asked.seed,
                        ordinal=asked.ordinal(place),
                        rollout_uid=finished.uid,
                        rewards=reward,
                        created_at=time.time(),
                    ),
                    connection,
                )

        self._recorder.record(policy, question, ref, [f for _, f in made], then=keep)

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


async def _ended(work: asyncio.Task[None]) -> None:
    """When it has, whatever with."""
    await asyncio.wait([work])


def submitted_id(policy_id: str, question_id: str, finish: int, tokens: Sequence[int]) -> str:
    """The id of a trajectory that was brought along."""
    return "trj-" + rollout_uid("submitted", policy_id, question_id, finish, *tokens).hex()[:24]
