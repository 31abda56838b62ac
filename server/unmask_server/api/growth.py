"""GrowthService."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import grpc
from unmask.v1 import growth_pb2 as pb
from unmask.v1 import growth_pb2_grpc

from unmask_server.api.access import budget_of_caller
from unmask_server.api.algorithms import check_teachers, check_top_k, parse_algorithms
from unmask_server.api.callers import client_of
from unmask_server.api.growth_messages import (
    budget,
    check_goal,
    extended,
    growth_message,
    rollouts_per_node,
    states,
)
from unmask_server.api.options import node_options, resolve_node
from unmask_server.api.paging import cut_page, decode_page, page_size
from unmask_server.api.precision import forecast_message, parse_precision
from unmask_server.catalog.errors import FailedPrecondition, InvalidArgument
from unmask_server.catalog.types import Policy, Question, Teacher
from unmask_server.config import Settings
from unmask_server.growth.control import Charge
from unmask_server.growth.quota import Quotas
from unmask_server.growth.runner import GrowthRunner
from unmask_server.growth.spec import Allocation, Growth, GrowthSpec, Origin, Target
from unmask_server.growth.store import Listing, Subjects
from unmask_server.nodes.resolve import OWN, Resolver, VerifierRef
from unmask_server.reasons import Reason
from unmask_server.telemetry import calls, tracing

Context = grpc.aio.ServicerContext[Any, Any]


_ALLOCATIONS = {
    pb.ALLOCATION_UNSPECIFIED: Allocation.ADAPTIVE,
    pb.ALLOCATION_ADAPTIVE: Allocation.ADAPTIVE,
    pb.ALLOCATION_EQUAL: Allocation.EQUAL,
    pb.ALLOCATION_POLICY: Allocation.POLICY,
    pb.ALLOCATION_DEPTH_WINDOWS: Allocation.DEPTH_WINDOWS,
}


class GrowthService(growth_pb2_grpc.GrowthServiceServicer):
    """See proto/unmask/v1/growth.proto."""

    def __init__(
        self, runner: GrowthRunner, resolver: Resolver, settings: Settings, quotas: Quotas
    ) -> None:
        self._runner = runner
        self._resolver = resolver
        self._settings = settings
        self._quotas = quotas

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
        spec, subjects = await asyncio.to_thread(self._spec, request)
        await asyncio.to_thread(
            self._quotas.admit,
            client_of(context).account,
            request.request_id,
            rollouts=spec.max_rollouts,
            tokens=spec.max_tokens,
            budget=budget_of_caller(),
        )
        origin = Origin(calls.current_id(), tracing.parent())
        growth = await self._runner.start(
            request.request_id, spec, subjects, origin, self._charging(context)
        )
        return pb.StartGrowthResponse(growth=self._message(growth))

    async def GetGrowth(
        self, request: pb.GetGrowthRequest, context: Context
    ) -> pb.GetGrowthResponse:
        """One growth."""
        growth = await self._runner.get(request.growth)
        return pb.GetGrowthResponse(growth=self._message(growth))

    async def ListGrowths(
        self, request: pb.ListGrowthsRequest, context: Context
    ) -> pb.ListGrowthsResponse:
        """Newest first."""
        size = page_size(request.page_size)
        listing = await asyncio.to_thread(self._listing, request)
        found = await self._runner.page(size + 1, decode_page(request.page_token), listing)
        made, token = cut_page(found, size, self._message, lambda one: (one.created_at, one.id))
        return pb.ListGrowthsResponse(growths=made, next_page_token=token)

    async def WatchGrowth(
        self, request: pb.WatchGrowthRequest, context: Context
    ) -> AsyncIterator[pb.WatchGrowthResponse]:
        """Progress, to the end."""
        async for growth in self._runner.watch(request.growth):
            yield pb.WatchGrowthResponse(growth=self._message(growth))

    async def CancelGrowth(
        self, request: pb.CancelGrowthRequest, context: Context
    ) -> pb.CancelGrowthResponse:
        """Stop, keeping what was sampled."""
        growth = await self._runner.cancel(request.growth)
        return pb.CancelGrowthResponse(growth=self._message(growth))

    async def PauseGrowth(
        self, request: pb.PauseGrowthRequest, context: Context
    ) -> pb.PauseGrowthResponse:
        """Stop until it is resumed."""
        growth = await self._runner.pause(request.growth)
        return pb.PauseGrowthResponse(growth=self._message(growth))

    async def ResumeGrowth(
        self, request: pb.ResumeGrowthRequest, context: Context
    ) -> pb.ResumeGrowthResponse:
        """Go on."""
        growth = await self._runner.resume(request.growth, self._charging(context))
        return pb.ResumeGrowthResponse(growth=self._message(growth))

    async def ExtendGrowth(
        self, request: pb.ExtendGrowthRequest, context: Context
    ) -> pb.ExtendGrowthResponse:
        """More to spend, or more to reach."""
        growth = await self._runner.extend(
            request.growth,
            lambda spec: extended(request, spec, self._settings),
            self._charging(context),
        )
        return pb.ExtendGrowthResponse(growth=self._message(growth))

    def _charging(self, context: Context) -> Charge:
        return self._quotas.charging(client_of(context).account, budget_of_caller())

    def _listing(self, request: pb.ListGrowthsRequest) -> Listing:
        policy = self._resolver.policy(request.policy, "policy").id if request.policy else ""
        question = (
            self._resolver.question(request.question, "question").id if request.question else ""
        )
        return Listing(states(request.states), policy, question)

    def _spec(self, request: pb.StartGrowthRequest) -> tuple[GrowthSpec, Subjects]:
        max_rollouts, max_tokens = budget(request.budget, self._settings)
        goal = rollouts_per_node(request.rollouts_per_node, self._settings)
        asked, subjects = self._asked(request)
        spec = replace(
            asked,
            allocation=_ALLOCATIONS[request.allocation],
            rollouts_per_node=goal,
            max_rollouts=max_rollouts,
            max_tokens=max_tokens,
        )
        check_goal(spec)
        return spec, subjects

    def _predicted(self, request: pb.PredictGrowthRequest) -> GrowthSpec:
        spec, _ = self._asked(request)
        if any(target.free for target in spec.targets):
            raise InvalidArgument("targets", "a question as a whole has no alignment")
        return spec

    def _asked(
        self, request: pb.StartGrowthRequest | pb.PredictGrowthRequest
    ) -> tuple[GrowthSpec, Subjects]:
        """What a growth is about, without what it may spend; and whose trees it grows."""
        options = node_options(request.options, "options")
        algorithms = parse_algorithms(request.algorithms, "algorithms")
        targets, subjects = self._targets(request.targets)
        policies = {policy.id: policy for policy, _ in subjects.values()}.values()
        questions = {question.id: question for _, question in subjects.values()}.values()
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
        verifier = self._verifier(options.verifier, list(questions))
        objective = None
        if request.HasField("precision"):
            objective = parse_precision(request.precision, len(teachers), "precision")
        spec = GrowthSpec(
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
        return spec, subjects.keys()

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
                Reason.VERIFIER_IS_EXTERNAL,
                "what a growth samples has no number of an EXTERNAL verifier yet: grow under "
                "another, then give the numbers (ListRollouts, PutOutcomes) and ask",
                verifier=verifier.id,
            )
        return verifier.id

    def _targets(
        self, wanted: Sequence[pb.GrowthTarget]
    ) -> tuple[list[Target], dict[tuple[str, str], tuple[Policy, Question]]]:
        targets: list[Target] = []
        subjects: dict[tuple[str, str], tuple[Policy, Question]] = {}
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
                case _:
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
            subjects[nodes.policy.id, nodes.question.id] = (nodes.policy, nodes.question)
        return targets, subjects

    def _message(self, growth: Growth) -> pb.Growth:
        return growth_message(growth, self._runner.seconds_left(growth))
