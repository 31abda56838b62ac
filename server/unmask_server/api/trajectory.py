"""TrajectoryService."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from functools import partial
from typing import Any

import grpc
from unmask.v1 import trajectory_pb2 as pb
from unmask.v1 import trajectory_pb2_grpc

from unmask_server.api.access import budget_of_caller
from unmask_server.api.callers import client_of
from unmask_server.api.paging import cut_page, decode_page, page_size
from unmask_server.api.sizes import PART_BYTES
from unmask_server.api.times import timestamp
from unmask_server.catalog import Catalog
from unmask_server.catalog.errors import FailedPrecondition, InvalidArgument
from unmask_server.catalog.tokenizer import without_stop
from unmask_server.catalog.types import Trajectory
from unmask_server.growth.asked import Asked
from unmask_server.growth.outcomes import LENGTH, STOP
from unmask_server.growth.quota import Quotas
from unmask_server.growth.trajectories import UNKNOWN, Piece, TrajectoryMaker
from unmask_server.nodes.resolve import Resolver

Context = grpc.aio.ServicerContext[Any, Any]

FINISHES = {
    STOP: pb.FINISH_REASON_STOP,
    LENGTH: pb.FINISH_REASON_LENGTH,
    UNKNOWN: pb.FINISH_REASON_UNSPECIFIED,
}
FINISH_CODES = {
    pb.FINISH_REASON_UNSPECIFIED: None,
    pb.FINISH_REASON_STOP: STOP,
    pb.FINISH_REASON_LENGTH: LENGTH,
}


class TrajectoryService(trajectory_pb2_grpc.TrajectoryServiceServicer):
    """See proto/unmask/v1/trajectory.proto."""

    def __init__(
        self,
        catalog: Catalog,
        resolver: Resolver,
        maker: TrajectoryMaker,
        quotas: Quotas,
    ) -> None:
        self._catalog = catalog
        self._resolver = resolver
        self._maker = maker
        self._quotas = quotas

    async def SampleTrajectories(
        self, request: pb.SampleTrajectoriesRequest, context: Context
    ) -> AsyncIterator[pb.SampleTrajectoriesResponse]:
        """Sample what is missing, and send all in the order asked."""
        policy = await asyncio.to_thread(self._resolver.policy, request.policy, "policy")
        questions = [
            await asyncio.to_thread(self._resolver.question, name, f"questions[{i}]")
            for i, name in enumerate(request.questions)
        ]
        if len({question.id for question in questions}) < len(questions):
            raise InvalidArgument("questions", "a question is named twice")
        asked = Asked(policy, questions, request.count, request.seed)
        counting = partial(self._quotas.sampling, client_of(context).account, budget_of_caller())
        async with aclosing(self._maker.sample(asked, counting)) as pieces:
            async for piece in pieces:
                parts = self._parts(piece)
                while (part := await asyncio.to_thread(next, parts, None)) is not None:
                    yield part

    def _parts(self, piece: Piece) -> Iterator[pb.SampleTrajectoriesResponse]:
        """Messages of about `PART_BYTES`, at most; a longer trajectory has one of its own."""
        part, filled = pb.SampleTrajectoriesResponse(), 0
        for trajectory, is_new in piece:
            message = self._message(trajectory)
            size = message.ByteSize()
            if part.trajectories and filled + size > PART_BYTES:
                yield part
                part, filled = pb.SampleTrajectoriesResponse(), 0
            part.trajectories.append(message)
            part.sampled += is_new
            filled += size
        yield part

    async def SubmitTrajectory(
        self, request: pb.SubmitTrajectoryRequest, context: Context
    ) -> pb.SubmitTrajectoryResponse:
        """Keep a generation from elsewhere."""
        return await asyncio.to_thread(self._submit, request)

    def _submit(self, request: pb.SubmitTrajectoryRequest) -> pb.SubmitTrajectoryResponse:
        policy = self._resolver.policy(request.policy, "policy")
        question = self._resolver.question(request.question, "question")
        kind = request.WhichOneof("generation")
        trajectory = self._maker.submit(
            policy,
            question,
            tokens=tuple(request.tokens.ids) if kind == "tokens" else None,
            text=request.text if kind == "text" else None,
            finish=FINISH_CODES[request.finish_reason],
        )
        return pb.SubmitTrajectoryResponse(trajectory=self._message(trajectory))

    async def GetTrajectory(
        self, request: pb.GetTrajectoryRequest, context: Context
    ) -> pb.GetTrajectoryResponse:
        """One trajectory with its tokens."""
        trajectory = await asyncio.to_thread(self._get, request.trajectory)
        return pb.GetTrajectoryResponse(trajectory=trajectory)

    def _get(self, trajectory_id: str) -> pb.Trajectory:
        return self._message(self._catalog.trajectories.get(trajectory_id))

    async def ListTrajectories(
        self, request: pb.ListTrajectoriesRequest, context: Context
    ) -> pb.ListTrajectoriesResponse:
        """A page, oldest first."""
        return await asyncio.to_thread(self._list, request)

    def _list(self, request: pb.ListTrajectoriesRequest) -> pb.ListTrajectoriesResponse:
        correct = {
            pb.OUTCOME_UNSPECIFIED: None,
            pb.OUTCOME_CORRECT: True,
            pb.OUTCOME_INCORRECT: False,
        }
        size = page_size(request.page_size)
        found = self._catalog.trajectories.page(
            policy_id=self._resolver.policy(request.policy, "policy").id
            if request.policy
            else None,
            question_id=(
                self._resolver.question(request.question, "question").id
                if request.question
                else None
            ),
            correct=correct[request.outcome],
            size=size + 1,
            after=decode_page(request.page_token),
        )
        made, token = cut_page(
            found,
            size,
            lambda one: self._message(one, with_tokens=False),
            lambda one: (one.created_at, one.id),
        )
        return pb.ListTrajectoriesResponse(trajectories=made, next_page_token=token)

    def _message(self, trajectory: Trajectory, *, with_tokens: bool = True) -> pb.Trajectory:
        policy = self._catalog.get_policy(trajectory.policy_id)
        question = self._catalog.get_question(trajectory.question_id)
        try:
            tokenizer = self._catalog.tokenizer(policy.model)
        except FailedPrecondition:
            # A list of everything must not fail because one model's directory is gone.
            if with_tokens:
                raise
            tokenizer = None
        message = pb.Trajectory(
            id=trajectory.id,
            policy_id=trajectory.policy_id,
            question_id=trajectory.question_id,
            text=(
                tokenizer.decode(without_stop(trajectory.tokens, policy.stop_ids))
                if tokenizer is not None
                else ""
            ),
            length=len(trajectory.tokens),
            finish_reason=FINISHES[trajectory.finish],
            reward=trajectory.rewards[question.verifier.key],
            seed=trajectory.seed,
            create_time=timestamp(trajectory.created_at),
        )
        if with_tokens and tokenizer is not None:
            texts = tokenizer.token_texts(trajectory.tokens)
            message.tokens.extend(
                pb.Token(id=token, text=text)
                for token, text in zip(trajectory.tokens, texts, strict=True)
            )
        return message
