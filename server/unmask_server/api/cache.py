"""CacheService."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from unmask.v1 import cache_pb2 as pb
from unmask.v1 import cache_pb2_grpc

from unmask_server.catalog.errors import InvalidArgument
from unmask_server.growth.recorder import Recorder
from unmask_server.growth.sampler import Sampler
from unmask_server.nodes.distributions import Scorer
from unmask_server.nodes.resolve import Resolver
from unmask_server.tree import TreeStore

Context = grpc.aio.ServicerContext[Any, Any]


class CacheService(cache_pb2_grpc.CacheServiceServicer):
    """See proto/unmask/v1/cache.proto."""

    def __init__(
        self,
        trees: TreeStore,
        recorder: Recorder,
        resolver: Resolver,
        sampler: Sampler,
        scorer: Scorer,
    ) -> None:
        self._trees = trees
        self._recorder = recorder
        self._resolver = resolver
        self._sampler = sampler
        self._scorer = scorer

    async def GetStatistics(
        self, request: pb.GetStatisticsRequest, context: Context
    ) -> pb.GetStatisticsResponse:
        """What is stored and what this server computed."""
        total = await asyncio.to_thread(self._trees.statistics)
        return pb.GetStatisticsResponse(
            trees=total.trees,
            nodes=total.nodes,
            rollouts=total.rollouts,
            tokens=total.tokens,
            distributions=total.distributions,
            rollouts_sampled=self._sampler.rollouts,
            tokens_sampled=self._sampler.tokens,
            distributions_scored=self._scorer.computed,
        )

    async def RegradeRollouts(
        self, request: pb.RegradeRolloutsRequest, context: Context
    ) -> pb.RegradeRolloutsResponse:
        """Grade by another verifier."""
        return await asyncio.to_thread(self._regrade, request)

    def _regrade(self, request: pb.RegradeRolloutsRequest) -> pb.RegradeRolloutsResponse:
        policy = self._resolver.policy(request.policy, "policy")
        question = self._resolver.question(request.question, "question")
        if not request.verifier:
            raise InvalidArgument("verifier", "give the id or name of a verifier")
        verifier = self._resolver.verifier(request.verifier, question)
        ref = self._recorder.tree(policy, question, question.verifier)
        graded = self._recorder.regrade(policy, question, ref, verifier)
        return pb.RegradeRolloutsResponse(graded=graded)
