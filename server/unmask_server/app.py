"""The one place where the parts are put together."""

from __future__ import annotations

import asyncio
import os
import socket
import uuid
from dataclasses import dataclass, replace

from sqlalchemy import Engine as Database

from unmask_server.access.listening import sources_of
from unmask_server.access.sources import Sources
from unmask_server.api.answers import AnswerCache
from unmask_server.api.cache import CacheService
from unmask_server.api.catalog import CatalogService
from unmask_server.api.diagnosis import DiagnosisService
from unmask_server.api.generations import GenerationService
from unmask_server.api.growth import GrowthService
from unmask_server.api.imports import ImportService
from unmask_server.api.sharing import Exporter
from unmask_server.api.trajectory import TrajectoryService
from unmask_server.catalog import Catalog, Grader
from unmask_server.catalog.types import Model
from unmask_server.config import Settings
from unmask_server.database.connect import open_database
from unmask_server.database.migrate import require_head
from unmask_server.database.notices import Notices
from unmask_server.engines.base import Engine
from unmask_server.engines.pool import EnginePool, OpenEngine
from unmask_server.growth.control import GrowthControl
from unmask_server.growth.fit import PolicyFit
from unmask_server.growth.generations import GenerationImporter
from unmask_server.growth.imports import Importer
from unmask_server.growth.quota import Quota, Quotas
from unmask_server.growth.recorder import Recorder
from unmask_server.growth.runner import GrowthRunner
from unmask_server.growth.sampler import Sampler
from unmask_server.growth.store import GrowthStore
from unmask_server.growth.trajectories import TrajectoryMaker
from unmask_server.growth.turns import Turns, TurnStore
from unmask_server.growth.work import WorkReader
from unmask_server.launched import LaunchedModels
from unmask_server.nodes.demonstrations import Demonstrations
from unmask_server.nodes.distributions import Scorer
from unmask_server.nodes.evidence import EvidenceReader
from unmask_server.nodes.resolve import Resolver
from unmask_server.nodes.rollout_scores import RolloutScorer
from unmask_server.nodes.sequences import SequenceReader
from unmask_server.nodes.stored import StoredTeachers
from unmask_server.nodes.versions import TreeVersions
from unmask_server.telemetry import tracing
from unmask_server.tree import (
    DistributionStore,
    OutcomeStore,
    RolloutScoreStore,
    ShareReader,
    TreeStore,
)


@dataclass(frozen=True, slots=True)
class App:
    """A server's parts, connected, but not yet listening."""

    database: Database
    trees: TreeStore
    engines: EnginePool
    launched: LaunchedModels
    grader: Grader
    runner: GrowthRunner
    notices: Notices
    versions: TreeVersions
    answers: AnswerCache
    catalog_service: CatalogService
    trajectory_service: TrajectoryService
    diagnosis_service: DiagnosisService
    growth_service: GrowthService
    cache_service: CacheService

    async def close(self) -> None:
        """Stop the work, then what it works with."""
        await self.notices.close()
        await self.runner.close()
        await self.engines.close()
        await self.launched.close()
        self.grader.close()
        self.database.dispose()


def build(settings: Settings, open_engine: OpenEngine | None = None) -> App:
    """Put a server together over a database that has been migrated.

    Args:
        settings: see `Settings`.
        open_engine: starts a model; the embedded transformers engine if None.

    Raises:
        RuntimeError: the database is at another revision of the schema.

    """
    database = open_database(settings.database, settings.database_limits)
    require_head(database)
    tracing.watch(database)
    grader = Grader()
    sources = sources_of(settings)
    catalog = Catalog(database, grader, sources)
    trees = TreeStore(database)
    versions = TreeVersions(trees)
    notices = Notices(database, versions.note_if_known)
    versions.rely_on(notices)
    launched = LaunchedModels(settings, sources.trust)
    engines = EnginePool(
        open_engine or _opener(settings, catalog, launched, sources),
        max_engines=settings.max_engines,
    )
    distributions = DistributionStore(database)
    scorer = Scorer(distributions, engines)
    stored = StoredTeachers(catalog, distributions)
    outcomes = OutcomeStore(database)
    recorder = Recorder(catalog, trees, outcomes, grader, versions.note)
    sampler = Sampler(catalog, engines)
    resolver = Resolver(catalog, recorder.graded)
    reader = EvidenceReader(catalog, scorer, stored)
    rollout_scorer = RolloutScorer(RolloutScoreStore(database), engines)
    demonstrations = Demonstrations(catalog, recorder.tree, trees)
    runner = GrowthRunner(
        GrowthStore(database, lease_seconds=settings.lease_seconds),
        WorkReader(resolver, reader, demonstrations, recorder, trees),
        sampler,
        recorder,
        GrowthControl(database),
        Turns(TurnStore(database, settings.lease_seconds)),
        owner=f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}",
    )
    quotas = Quotas(database, Quota(settings.quota_rollouts, settings.quota_tokens))
    answers = AnswerCache(versions, max_bytes=settings.answer_cache_mib * 2**20)
    diagnosis = DiagnosisService(
        catalog,
        resolver,
        reader,
        SequenceReader(catalog, scorer, rollout_scorer, trees),
        demonstrations,
        recorder,
        trees,
        outcomes,
        answers,
    )
    return App(
        database=database,
        trees=trees,
        engines=engines,
        launched=launched,
        grader=grader,
        runner=runner,
        notices=notices,
        versions=versions,
        answers=answers,
        catalog_service=CatalogService(
            catalog,
            resolver,
            demonstrations,
            stored,
            launched.endpoints,
            max_noise=settings.max_noise,
        ),
        trajectory_service=TrajectoryService(
            catalog, resolver, TrajectoryMaker(catalog, sampler, recorder), quotas
        ),
        diagnosis_service=diagnosis,
        growth_service=GrowthService(
            runner,
            resolver,
            settings,
            quotas,
        ),
        cache_service=CacheService(
            catalog,
            trees,
            outcomes,
            recorder,
            resolver,
            sampler,
            scorer,
            Exporter(catalog, ShareReader(database), diagnosis.estimates),
            ImportService(catalog, Importer(catalog, trees, outcomes, recorder), distributions),
            GenerationService(
                catalog,
                resolver,
                GenerationImporter(catalog, recorder, PolicyFit(catalog, engines)),
            ),
        ),
    )


def _opener(
    settings: Settings, catalog: Catalog, launched: LaunchedModels, sources: Sources
) -> OpenEngine:
    async def open_engine(model: Model, vocab_size: int) -> Engine:
        served = await launched.served(model, vocab_size)
        if served is not model:
            # What SGLang loaded is what the directory held; it must be what was registered.
            here = replace(model, endpoints=())
            await asyncio.to_thread(catalog.check_model_unchanged, here)
            return await _sglang(settings, served, vocab_size, sources)
        if model.endpoints:
            return await _sglang(settings, model, vocab_size, sources)
        return await transformers(model, vocab_size)

    async def transformers(model: Model, vocab_size: int) -> Engine:
        # Imported late: a server without this engine holds no torch.
        from unmask_server.engines.transformers import TransformersEngine

        # A checkpoint that was overwritten must not answer under the old one's name.
        await asyncio.to_thread(catalog.check_model_unchanged, model)
        engine = await TransformersEngine.open(
            model.source,
            device=settings.device,
            dtype=settings.dtype,
            max_batch=settings.max_batch,
            threads=settings.threads,
            vocab_size=vocab_size,
        )
        try:
            await asyncio.to_thread(catalog.check_model_unchanged, model)
        except BaseException:
            await engine.close()
            raise
        return engine

    return open_engine


async def _sglang(settings: Settings, model: Model, vocab_size: int, sources: Sources) -> Engine:
    # Imported late, like the other engine.
    from unmask_server.engines.sglang import Serving, SglangEngine

    if model.serving is None:
        raise RuntimeError(f"the servers of {model.fingerprint} were never looked at")
    return SglangEngine(
        model.endpoints,
        Serving.from_json(dict(model.serving)),
        columns=model.vocab_size,
        usable=vocab_size,
        max_context=model.max_context,
        eos_ids=model.eos_ids,
        max_in_flight=settings.sglang_in_flight,
        timeout=settings.sglang_timeout_seconds,
        patience=settings.sglang_patience_seconds,
        may_call=sources.may_call(model.endpoints),
    )
