"""GrowthService."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import grpc
from unmask.v1 import growth_pb2 as pb
from unmask.v1 import growth_pb2_grpc

from unmask_server.api.algorithms import check_teachers, check_top_k, parse_algorithms
from unmask_server.api.options import node_options, resolve_node
from unmask_server.api.paging import decode_page, encode_page, page_size
from unmask_server.api.precision import forecast_message, parse_precision
from unmask_server.api.times import timestamp
from unmask_server.catalog.errors import FailedPrecondition, InvalidArgument
from unmask_server.catalog.types import Policy, Question, Teacher
from unmask_server.config import Settings
from unmask_server.growth.runner import GrowthRunner
from unmask_server.growth.spec import Allocation, Growth, GrowthSpec, State, Target
from unmask_server.nodes.resolve import OWN, Resolver, VerifierRef

Context = grpc.aio.ServicerContext[Any, Any]

MAX_REQUEST_ID = 200
MAX_TARGETS = 10_000

_STATES = {
    State.QUEUED: pb.GROWTH_STATE_QUEUED,
    State.RUNNING: pb.GROWTH_STATE_RUNNING,
    State.SUCCEEDED: pb.GROWTH_STATE_SUCCEEDED,
    State.CANCELLED: pb.GROWTH_STATE_CANCELLED,
    State.FAILED: pb.GROWTH_STATE_FAILED,
}
_ALLOCATIONS = {
    pb.ALLOCATION_UNSPECIFIED: Allocation.ADAPTIVE,
    pb.ALLOCATION_ADAPTIVE: Allocation.ADAPTIVE,
    pb.ALLOCATION_EQUAL: Allocation.EQUAL,
    pb.ALLOCATION_POLICY: Allocation.POLICY,
    pb.ALLOCATION_DEPTH_WINDOWS: Allocation.DEPTH_WINDOWS,
}


class GrowthService(growth_pb2_grpc.GrowthServiceServicer):
    """See proto/unmask/v1/growth.proto."""

    def __init__(self, runner: GrowthRunner, resolver: Resolver, settings: Settings) -> None:
        self._runner = runner
        self._resolver = resolver
        self._settings = settings

    async def PredictGrowth(
        self, request: pb.PredictGrowthRequest, context: Context
    ) -> pb.PredictGrowthResponse:
        """What a precision would cost."""
        spec = await asyncio.to_thread(self._predicted, request)
        found = await self._runner.predict(spec, self._settings.max_rollouts)
        return pb.PredictGrowthResponse(
            forecast=forecast_message(found.forecast, found.tokens_per_second),
            nodes=found.now.nodes,
            nodes_settled=found.now.settled,
            rollouts_cached=found.now.cached,
            may_be_more=found.forecast.may_be_more,
        )

    async def StartGrowth(
        self, request: pb.StartGrowthRequest, context: Context
    ) -> pb.StartGrowthResponse:
        """Check everything, then start."""
        spec = await asyncio.to_thread(self._spec, request)
        growth = await self._runner.start(request.request_id, spec)
        return pb.StartGrowthResponse(growth=self._message(growth))

    async def GetGrowth(
        self, request: pb.GetGrowthRequest, context: Context
    ) -> pb.GetGrowthResponse:
        """One growth."""
        growth = await self._runner.get(_named(request.growth))
        return pb.GetGrowthResponse(growth=self._message(growth))

    async def ListGrowths(
        self, request: pb.ListGrowthsRequest, context: Context
    ) -> pb.ListGrowthsResponse:
        """Newest first."""
        size = page_size(request.page_size)
        found = await self._runner.page(size + 1, decode_page(request.page_token))
        more = len(found) > size
        found = found[:size]
        return pb.ListGrowthsResponse(
            growths=[self._message(growth) for growth in found],
            next_page_token=encode_page((found[-1].created_at, found[-1].id)) if more else "",
        )

    async def WatchGrowth(
        self, request: pb.WatchGrowthRequest, context: Context
    ) -> AsyncIterator[pb.WatchGrowthResponse]:
        """Progress, to the end."""
        async for growth in self._runner.watch(_named(request.growth)):
            yield pb.WatchGrowthResponse(growth=self._message(growth))

    async def CancelGrowth(
        self, request: pb.CancelGrowthRequest, context: Context
    ) -> pb.CancelGrowthResponse:
        """Stop, keeping what was sampled."""
        growth = await self._runner.cancel(_named(request.growth))
        return pb.CancelGrowthResponse(growth=self._message(growth))

    def _spec(self, request: pb.StartGrowthRequest) -> GrowthSpec:
        if not request.request_id:
            raise InvalidArgument(
                "request_id", "choose one; a retry with the same id costs nothing"
            )
        if len(request.request_id) > MAX_REQUEST_ID:
            raise InvalidArgument("request_id", f"longer than {MAX_REQUEST_ID} characters")
        if request.rollouts_per_node < 0:
            raise InvalidArgument("rollouts_per_node", "below 0; 0 means to spend the budget")
        if request.allocation not in _ALLOCATIONS:
            raise InvalidArgument(
                "allocation", f"no allocation has the number {request.allocation}"
            )
        max_rollouts, max_tokens = self._budget(request.budget)
        if request.rollouts_per_node > self._settings.max_rollouts:
            raise InvalidArgument(
                "rollouts_per_node", f"more than this server's limit, {self._settings.max_rollouts}"
            )
        allocation = _ALLOCATIONS[request.allocation]
        if request.HasField("precision") and allocation is not Allocation.ADAPTIVE:
            raise InvalidArgument("precision", "only ADAPTIVE allocation works towards one")
        spec = self._asked(request)
        if spec.objective and not request.rollouts_per_node and any(t.free for t in spec.targets):
            raise InvalidArgument(
                "rollouts_per_node", "say how many for question targets: they have no alignment"
            )
        return replace(
            spec,
            allocation=allocation,
            rollouts_per_node=request.rollouts_per_node,
            max_rollouts=max_rollouts,
            max_tokens=max_tokens,
        )

    def _predicted(self, request: pb.PredictGrowthRequest) -> GrowthSpec:
        if not request.HasField("precision"):
            raise InvalidArgument("precision", "say how precise the answers are to be")
        spec = self._asked(request)
        if any(target.free for target in spec.targets):
            raise InvalidArgument("targets", "a question as a whole has no alignment")
        return spec

    def _asked(self, request: pb.StartGrowthRequest | pb.PredictGrowthRequest) -> GrowthSpec:
        """What a growth is about, without what it may spend."""
        if not request.targets:
            raise InvalidArgument("targets", "give at least one target to grow")
        if len(request.targets) > MAX_TARGETS:
            raise InvalidArgument("targets", f"more than {MAX_TARGETS}; start several growths")
        options = node_options(request.options, "options")
        algorithms = parse_algorithms(request.algorithms, "algorithms")
        targets, policies, questions = self._targets(request.targets)
        teachers: list[Teacher] = []
        for policy in policies:
            teachers = self._resolver.teachers(request.teachers, policy)
            for question in questions:
                self._resolver.check_teachers(teachers, question, policy.max_new_tokens)
        for i, algorithm in enumerate(algorithms):
            check_top_k(algorithm, options.top_k, f"algorithms[{i}].top_k")
            check_teachers(algorithm, teachers, f"algorithms[{i}]")
        if request.algorithms and not teachers and any(a.needs_teacher for a in algorithms):
            raise InvalidArgument("teachers", "an algorithm compares with a teacher; name one")
        verifier = self._verifier(options.verifier, questions)
        objective = None
        if request.HasField("precision"):
            objective = parse_precision(request.precision, len(teachers), "precision")
        return GrowthSpec(
            targets=tuple(targets),
            allocation=Allocation.ADAPTIVE,
            verifier=verifier,
            teacher_ids=tuple(teacher.id for teacher in teachers),
            top_k=options.top_k,
            rollouts_per_node=0,
            max_rollouts=None,
            max_tokens=None,
            algorithms=tuple(algorithms),
            objective=objective,
        )

    def _verifier(self, wanted: VerifierRef, questions: Sequence[Question]) -> str:
        """The id of the verifier that grades a growth; empty for the questions' own."""
        if wanted == OWN:
            return ""
        found = [self._resolver.graded_by(wanted, question) for question in questions]
        if len({verifier.id for verifier in found}) > 1:
            raise InvalidArgument(
                wanted.field, "the questions have several verifiers of their own; name one"
            )
        verifier = found[0]
        if verifier.externals:
            raise FailedPrecondition(
                "what a growth samples has no number of an EXTERNAL verifier yet: grow under "
                "another, then give the numbers (ListRollouts, PutOutcomes) and ask"
            )
        return verifier.id

    def _budget(self, budget: pb.Budget) -> tuple[int | None, int | None]:
        if not budget.HasField("rollouts") and not budget.HasField("tokens"):
            raise InvalidArgument("budget", "say how many rollouts or tokens may be sampled")
        rollouts = budget.rollouts if budget.HasField("rollouts") else None
        tokens = budget.tokens if budget.HasField("tokens") else None
        for name, value, limit in (
            ("rollouts", rollouts, self._settings.max_rollouts),
            ("tokens", tokens, self._settings.max_tokens),
        ):
            if value is not None and not 1 <= value <= limit:
                raise InvalidArgument(
                    f"budget.{name}", f"{value} is not in 1 to this server's limit, {limit}"
                )
        return rollouts, tokens

    def _targets(
        self, wanted: Sequence[pb.GrowthTarget]
    ) -> tuple[list[Target], list[Policy], list[Question]]:
        targets: list[Target] = []
        policies: dict[str, Policy] = {}
        questions: dict[str, Question] = {}
        for i, target in enumerate(wanted):
            field = f"targets[{i}]"
            match target.WhichOneof("target"):
                case "trajectory":
                    nodes = self._resolver.trajectory(
                        target.trajectory,
                        positions=None,
                        verifier=OWN,
                        field=f"{field}.trajectory",
                    )
                    targets.append(Target(trajectory_id=target.trajectory))
                case "node":
                    nodes = resolve_node(self._resolver, target.node, OWN, f"{field}.node")
                    if nodes.trajectory is not None:
                        targets.append(
                            Target(trajectory_id=nodes.trajectory.id, position=nodes.positions[0])
                        )
                    else:
                        targets.append(
                            Target(
                                policy_id=nodes.policy.id,
                                question_id=nodes.question.id,
                                prefix=nodes.tokens,
                                observed=nodes.observed[0],
                            )
                        )
                case "question":
                    nodes = self._resolver.prefix(
                        target.question.policy,
                        target.question.question,
                        tokens=(),
                        text=None,
                        observed=None,
                        verifier=OWN,
                        field=f"{field}.question",
                    )
                    targets.append(
                        Target(policy_id=nodes.policy.id, question_id=nodes.question.id, free=True)
                    )
                case _:
                    raise InvalidArgument(field, "set node, trajectory or question")
            policies[nodes.policy.id] = nodes.policy
            questions[nodes.question.id] = nodes.question
        return targets, list(policies.values()), list(questions.values())

    def _message(self, growth: Growth) -> pb.Growth:
        return pb.Growth(
            id=growth.id,
            request_id=growth.request_id,
            state=_STATES[growth.state],
            error=growth.error,
            rollouts_sampled=growth.rollouts_sampled,
            tokens_sampled=growth.tokens_sampled,
            rollouts_cached=growth.rollouts_cached,
            rollouts_planned=growth.rollouts_planned,
            nodes=growth.nodes,
            nodes_flat=growth.nodes_flat,
            seconds_left=self._runner.seconds_left(growth),
            create_time=timestamp(growth.created_at),
            update_time=timestamp(growth.updated_at),
            nodes_settled=growth.nodes_settled,
            half_width=growth.half_width,
            next_halving=None
            if growth.next_halving is None
            else forecast_message(growth.next_halving, None),
        )


def _named(growth_id: str) -> str:
    if not growth_id:
        raise InvalidArgument("growth", "give the id of a growth")
    return growth_id
