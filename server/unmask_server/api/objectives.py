"""DiagnosisService.CompareObjectives."""

from __future__ import annotations

import asyncio

from unmask.v1 import diagnosis_pb2 as pb

from unmask_server.api import diagnosis_messages as messages
from unmask_server.api.algorithms import parse_algorithms
from unmask_server.api.options import graded_by, node_options
from unmask_server.api.read import Read, Reader, VersionsRead, check_alike
from unmask_server.api.units import Units
from unmask_server.catalog import Catalog
from unmask_server.catalog.errors import InvalidArgument
from unmask_server.computing import compute
from unmask_server.diagnosis import Alignment
from unmask_server.nodes.disagree import Disagreements
from unmask_server.nodes.resolve import Resolver
from unmask_server.nodes.summarize import Row, Summarizer


async def compare_objectives(
    request: pb.CompareObjectivesRequest, resolver: Resolver, read: Reader, catalog: Catalog
) -> pb.CompareObjectivesResponse:
    """The answer: see proto/unmask/v1/diagnosis.proto."""
    options = node_options(request.options, "options")
    algorithms = parse_algorithms(request.algorithms, "algorithms")
    wanted = [
        graded_by(one.verifier, one.terms, f"objectives[{i}].terms")
        for i, one in enumerate(request.objectives)
    ]
    summarizers = [Summarizer(algorithms, min_coverage=options.min_coverage) for _ in wanted]
    disagreements = Disagreements()
    used: list[dict[str, None]] = [{} for _ in wanted]
    first: list[Read] = []
    versions = VersionsRead()
    for i, trajectory in enumerate(request.trajectories):
        answers: list[list[dict[Row, Alignment]]] = []
        reads: list[Read] = []
        for k, verifier in enumerate(wanted):
            nodes = await asyncio.to_thread(
                resolver.trajectory,
                trajectory,
                positions=None,
                verifier=verifier,
                field=f"trajectories[{i}]",
            )
            if first:
                check_alike(nodes, first[k].nodes, f"trajectories[{i}]")
            if nodes.verifier.id in {done.nodes.verifier.id for done in reads}:
                raise InvalidArgument(f"objectives[{k}]", "the same as one before it")
            used[k][nodes.verifier.id] = None
            found = await read(nodes, request.teachers, algorithms, options)
            versions.add(found)
            add = summarizers[k].add
            answers.append(await compute(add, found.nodes, found.evidence, found.group))
            reads.append(found)
        await compute(disagreements.add, reads[0].nodes, answers)
        first = first or reads
    tokenizer = catalog.tokenizer(first[0].nodes.policy.model)
    response = pb.CompareObjectivesResponse(tree_versions=versions.messages())
    for summarizer, verifiers, one in zip(summarizers, used, first, strict=True):
        summary = await compute(summarizer.finish)
        units = Units.of(one.nodes.verifier)
        response.objectives.add(
            verifier_ids=list(verifiers),
            summaries=[messages.summary(row, one.teachers, units) for row in summary.rows],
            comparisons=[
                messages.comparison(pair, one.teachers, units) for pair in summary.comparisons
            ],
        )
    response.disagreements.extend(
        messages.disagreement(row, first[0].teachers, tokenizer) for row in disagreements.rows
    )
    return response
