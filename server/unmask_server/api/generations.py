"""CacheService.ImportGenerations."""

from __future__ import annotations

import asyncio

from unmask.v1 import catalog_pb2
from unmask.v1 import sharing_pb2 as pb

from unmask_server.api.trajectory import FINISH_CODES
from unmask_server.catalog import Catalog
from unmask_server.catalog.errors import FailedPrecondition, InvalidArgument
from unmask_server.catalog.settings import choose_cuts
from unmask_server.catalog.types import Policy, Verifier, VerifierKind
from unmask_server.engines.base import Sampling
from unmask_server.growth.generations import GenerationImporter, Told, Wished
from unmask_server.nodes.resolve import Resolver
from unmask_server.reasons import Reason

DEFAULT_SCORED = 16
DEFAULT_TOLERANCE = 0.05
"""In nats: what trainers' engines and this one differ by is below it, other checkpoints are not."""


class GenerationService:
    """Checks a request, and answers it."""

    def __init__(self, catalog: Catalog, resolver: Resolver, importer: GenerationImporter) -> None:
        self._catalog = catalog
        self._resolver = resolver
        self._importer = importer

    async def take(self, request: pb.ImportGenerationsRequest) -> pb.ImportGenerationsResponse:
        """Take generations in."""
        policy, given, wished = await asyncio.to_thread(self._read, request)
        done = await self._importer.take(policy, given, wished)
        return pb.ImportGenerationsResponse(
            added=done.added,
            known=done.known,
            scored=done.fit.generations,
            scored_tokens=done.fit.tokens,
            logprob_distance=done.fit.distance,
            surprise=done.fit.surprise,
            surprise_error=done.fit.surprise_error,
        )

    def _read(self, request: pb.ImportGenerationsRequest) -> tuple[Policy, list[Told], Wished]:
        policy = self._resolver.policy(request.policy, "policy")
        _check_settings(policy, request)
        tolerance = request.tolerance if request.HasField("tolerance") else DEFAULT_TOLERANCE
        scored = request.scored if request.HasField("scored") else DEFAULT_SCORED
        wished = Wished(
            run=request.run,
            questions=tuple(request.questions),
            verifier=self._external(request.verifier) if request.verifier else None,
            allow_text=request.allow_text,
            tolerance=tolerance,
            scored=min(scored, len(request.generations)),
            validate_only=request.validate_only,
        )
        given = [_told(one, f"generations[{i}]") for i, one in enumerate(request.generations)]
        return policy, given, wished

    def _external(self, name: str) -> Verifier:
        found = self._catalog.get_verifier(name)
        if found.kind is not VerifierKind.EXTERNAL:
            raise InvalidArgument(
                "verifier", f"{name!r} is of kind {found.kind.value}; rewards need an EXTERNAL one"
            )
        return found


def _told(message: pb.TrainerGeneration, field: str) -> Told:
    return Told(
        field=field,
        question=message.question,
        prompt_tokens=tuple(message.prompt_tokens),
        prompt_text=message.prompt_text,
        tokens=tuple(message.tokens),
        text=message.text or None,
        finish=FINISH_CODES[message.finish_reason],
        logprobs=tuple(message.logprobs),
        reward=message.reward if message.HasField("reward") else None,
        ordinal=message.ordinal,
    )


def _check_settings(policy: Policy, request: pb.ImportGenerationsRequest) -> None:
    """Refuse generations that were not drawn as the policy's are."""
    told = request.sampling
    sampling = Sampling(
        told.temperature if told.HasField("temperature") else 1.0,
        told.top_p if told.HasField("top_p") else 1.0,
        told.top_k if told.HasField("top_k") else 0,
    )
    joint = {
        catalog_pb2.CUT_ORDER_JOINT: True,
        catalog_pb2.CUT_ORDER_TOP_K_FIRST: False,
    }.get(told.cut_order, policy.sampling.joint)
    sampling = choose_cuts(sampling, joint, is_served=False)
    limits = (request.max_new_tokens, policy.max_new_tokens)
    if sampling != policy.sampling or limits[0] != limits[1]:
        raise FailedPrecondition(
            Reason.SAMPLING_DIFFERS,
            f"the generations were drawn with {_words(sampling, limits[0])}, and policy "
            f"{policy.id} is {_words(policy.sampling, limits[1])}: register a policy with the "
            "trainer's settings",
            field="sampling",
            policy=policy.id,
        )


def _words(sampling: Sampling, limit: int) -> str:
    order = ", joint" if sampling.joint else ""
    return (
        f"temperature {sampling.temperature:g}, top_p {sampling.top_p:g}, top_k {sampling.top_k}"
        f"{order}, max_new_tokens {limit}"
    )
