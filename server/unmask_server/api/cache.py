"""CacheService."""

from __future__ import annotations

import asyncio
import binascii
from collections.abc import AsyncIterator
from typing import Any

import grpc
from unmask.v1 import cache_pb2 as pb
from unmask.v1 import cache_pb2_grpc, sharing_pb2

from unmask_server.api.generations import GenerationService
from unmask_server.api.imports import ImportService
from unmask_server.api.paging import cut_page, decode_page, page_size
from unmask_server.api.sharing import Exporter
from unmask_server.api.trajectory import FINISHES
from unmask_server.catalog import Catalog
from unmask_server.catalog.errors import AlreadyExists, InvalidArgument, NotFound
from unmask_server.catalog.tokenizer import without_stop
from unmask_server.catalog.types import Verifier, VerifierKind
from unmask_server.growth.recorder import Recorder
from unmask_server.growth.sampler import Sampler
from unmask_server.nodes.distributions import Scorer
from unmask_server.nodes.resolve import Resolver
from unmask_server.reasons import Reason
from unmask_server.tree import (
    OutcomeDiffersError,
    OutcomeStore,
    TreeStore,
    UnknownRolloutError,
)

Context = grpc.aio.ServicerContext[Any, Any]

UID_BYTES = 16


class CacheService(cache_pb2_grpc.CacheServiceServicer):
    """See proto/unmask/v1/cache.proto."""

    def __init__(
        self,
        catalog: Catalog,
        trees: TreeStore,
        outcomes: OutcomeStore,
        recorder: Recorder,
        resolver: Resolver,
        sampler: Sampler,
        scorer: Scorer,
        exporter: Exporter,
        imports: ImportService,
        generations: GenerationService,
    ) -> None:
        self._catalog = catalog
        self._trees = trees
        self._outcomes = outcomes
        self._recorder = recorder
        self._resolver = resolver
        self._sampler = sampler
        self._scorer = scorer
        self._exporter = exporter
        self._imports = imports
        self._generations = generations

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

    async def ListRollouts(
        self, request: pb.ListRolloutsRequest, context: Context
    ) -> pb.ListRolloutsResponse:
        """A page, as texts."""
        return await asyncio.to_thread(self._list, request)

    async def PutOutcomes(
        self, request: pb.PutOutcomesRequest, context: Context
    ) -> pb.PutOutcomesResponse:
        """Keep a client's numbers."""
        return await asyncio.to_thread(self._put, request)

    async def ExportCache(
        self, request: sharing_pb2.ExportCacheRequest, context: Context
    ) -> AsyncIterator[sharing_pb2.ExportCacheResponse]:
        """Everything, part by part."""
        async for part in self._exporter.export(request):
            yield part

    async def ImportCache(
        self, request: sharing_pb2.ImportCacheRequest, context: Context
    ) -> sharing_pb2.ImportCacheResponse:
        """Merge what another cache gave."""
        return await asyncio.to_thread(self._imports.take, request)

    async def ImportGenerations(
        self, request: sharing_pb2.ImportGenerationsRequest, context: Context
    ) -> sharing_pb2.ImportGenerationsResponse:
        """Take a trainer's generations in."""
        return await self._generations.take(request)

    def _regrade(self, request: pb.RegradeRolloutsRequest) -> pb.RegradeRolloutsResponse:
        policy = self._resolver.policy(request.policy, "policy")
        question = self._resolver.question(request.question, "question")
        verifier = self._resolver.verifier(request.verifier, question)
        ref = self._recorder.tree(policy, question, question.verifier)
        graded = self._recorder.regrade(policy, question, ref, verifier)
        return pb.RegradeRolloutsResponse(graded=graded)

    def _list(self, request: pb.ListRolloutsRequest) -> pb.ListRolloutsResponse:
        policy = self._resolver.policy(request.policy, "policy")
        question = self._resolver.question(request.question, "question")
        missing = (
            self._external(request.missing_outcome_of, "missing_outcome_of").key
            if request.missing_outcome_of
            else None
        )
        size = page_size(request.page_size)
        after = _after(request.page_token)
        tree = self._recorder.tree(policy, question, question.verifier)
        found = self._outcomes.rollouts(tree.id, after, size + 1, missing)
        tokenizer = self._catalog.tokenizer(policy.model)
        made, token = cut_page(
            found,
            size,
            lambda rollout: pb.Rollout(
                id=rollout.uid.hex(),
                text=tokenizer.decode(without_stop(rollout.tokens, policy.stop_ids)),
                length=len(rollout.tokens),
                forced=rollout.forced_depth,
                finish_reason=FINISHES[rollout.finish],
            ),
            lambda rollout: (0.0, str(rollout.id)),
        )
        return pb.ListRolloutsResponse(rollouts=made, next_page_token=token)

    def _put(self, request: pb.PutOutcomesRequest) -> pb.PutOutcomesResponse:
        verifier = self._external(request.verifier, "verifier")
        rollouts: dict[bytes, float] = {}
        trajectories: dict[str, float] = {}
        for i, given in enumerate(request.outcomes):
            field = f"outcomes[{i}]"
            uid = self._uid(given.rollout, f"{field}.rollout")
            if (given.rollout in trajectories) if uid is None else (uid in rollouts):
                raise InvalidArgument(f"{field}.rollout", f"{given.rollout!r} is given twice")
            if uid is None:
                trajectories[given.rollout] = given.reward
            else:
                rollouts[uid] = given.reward
        try:
            added = self._outcomes.put(verifier.key, rollouts, trajectories)
        except UnknownRolloutError as error:
            raise NotFound("rollout", error.args[0].hex()) from None
        except OutcomeDiffersError as error:
            name = error.args[0]
            name = name.hex() if isinstance(name, bytes) else name
            raise AlreadyExists(
                Reason.OUTCOME_DIFFERS,
                "outcomes",
                f"{name} has another number of verifier {verifier.name or verifier.id}: register "
                "one with another `source` for other numbers",
                kind="verifier",
                name=verifier.id,
            ) from None
        return pb.PutOutcomesResponse(added=added)

    def _uid(self, name: str, field: str) -> bytes | None:
        """Of a rollout, by its id or its trajectory's; None for a submitted trajectory."""
        if name.startswith("trj-"):
            return self._catalog.trajectories.get(name).rollout_uid
        try:
            uid = bytes.fromhex(name)
        except (ValueError, binascii.Error):
            uid = b""
        if len(uid) != UID_BYTES:
            raise InvalidArgument(field, f"{name!r} is no id of ListRollouts, nor a trajectory's")
        return uid

    def _external(self, name: str, field: str) -> Verifier:
        found = self._catalog.get_verifier(name)
        if found.kind is not VerifierKind.EXTERNAL:
            raise InvalidArgument(
                field, f"{name!r} is of kind {found.kind.value}, which grades by itself"
            )
        return found


def _after(token: str) -> int:
    """The rollout before a page."""
    key = decode_page(token)
    if key is None:
        return 0
    if not (key[1].isascii() and key[1].isdigit() and len(key[1]) < 19):
        raise InvalidArgument("page_token", "not a token of this call")
    return int(key[1])
