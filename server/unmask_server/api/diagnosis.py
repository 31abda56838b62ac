"""DiagnosisService."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import grpc
from unmask.v1 import diagnosis_pb2 as pb
from unmask.v1 import diagnosis_pb2_grpc, sharing_pb2

from unmask_server.api import diagnosis_messages as messages
from unmask_server.api.algorithms import check_teachers, check_top_k, parse_algorithms
from unmask_server.api.answers import AnswerCache, encode
from unmask_server.api.objectives import compare_objectives
from unmask_server.api.options import Options, node_options, resolve_node
from unmask_server.api.read import MAX_SUMMARIZED, Read, VersionsRead, check_alike
from unmask_server.api.units import Units
from unmask_server.catalog import Catalog
from unmask_server.catalog.errors import InvalidArgument
from unmask_server.catalog.types import Teacher
from unmask_server.computing import compute
from unmask_server.diagnosis import Algorithm, Form
from unmask_server.growth.recorder import Recorder
from unmask_server.nodes.backup import BackUp, positions_below
from unmask_server.nodes.demonstrations import Demonstrations
from unmask_server.nodes.diagnose import Group, Scored, alignments, posterior
from unmask_server.nodes.evidence import EvidenceReader, evidence
from unmask_server.nodes.resolve import NodeSet, Resolver
from unmask_server.nodes.sequences import SequenceReader, with_sequels
from unmask_server.nodes.summarize import GroupedSummary, Summarizer
from unmask_server.telemetry import tracing
from unmask_server.tree import OutcomeStore, TreeStore, TreeView

Context = grpc.aio.ServicerContext[Any, Any]

STREAM_CHUNK = 32
"""Positions of a stream that are computed together, while the ones before are on their way."""


class DiagnosisService(diagnosis_pb2_grpc.DiagnosisServiceServicer):
    """See proto/unmask/v1/diagnosis.proto.

    Answers about one node are kept as bytes until the node's tree changes.
    """

    def __init__(
        self,
        catalog: Catalog,
        resolver: Resolver,
        reader: EvidenceReader,
        sequences: SequenceReader,
        demonstrations: Demonstrations,
        recorder: Recorder,
        trees: TreeStore,
        outcomes: OutcomeStore,
        answers: AnswerCache,
    ) -> None:
        self._catalog = catalog
        self._resolver = resolver
        self._reader = reader
        self._sequences = sequences
        self._demonstrations = demonstrations
        self._back_up = BackUp(reader)
        self._recorder = recorder
        self._trees = trees
        self._outcomes = outcomes
        self._answers = answers

    async def GetNode(self, request: pb.GetNodeRequest, context: Context) -> pb.GetNodeResponse:
        """Candidates and their estimates."""
        return cast(
            pb.GetNodeResponse, await self._answer("GetNode", request, (), self._node_response)
        )

    async def GetIdealGradient(
        self, request: pb.GetIdealGradientRequest, context: Context
    ) -> pb.GetIdealGradientResponse:
        """The ideal gradient."""
        return cast(
            pb.GetIdealGradientResponse,
            await self._answer("GetIdealGradient", request, (), self._ideal_response),
        )

    async def GetAlignment(
        self, request: pb.GetAlignmentRequest, context: Context
    ) -> pb.GetAlignmentResponse:
        """Alignments at one node."""
        algorithms = parse_algorithms(request.algorithms, "algorithms")

        def respond(read: Read, options: Options) -> pb.GetAlignmentResponse:
            node, scored = self._alignments_at(read, 0, algorithms, options)
            return pb.GetAlignmentResponse(node=node, alignments=scored)

        return cast(
            pb.GetAlignmentResponse,
            await self._answer("GetAlignment", request, algorithms, respond),
        )

    async def StreamTrajectoryAlignments(
        self, request: pb.StreamTrajectoryAlignmentsRequest, context: Context
    ) -> AsyncIterator[pb.StreamTrajectoryAlignmentsResponse]:
        """Alignments at every token of a trajectory, all of one version of its tree."""
        options = node_options(request.options, "options")
        algorithms = parse_algorithms(request.algorithms, "algorithms")
        nodes = await asyncio.to_thread(
            self._resolver.trajectory,
            request.trajectory,
            positions=list(request.positions) or None,
            verifier=options.verifier,
            field="trajectory",
        )
        read = await self._read(nodes, request.teachers, algorithms, options)
        count = len(read.evidence)
        for start in range(0, count, STREAM_CHUNK):
            chunk = range(start, min(start + STREAM_CHUNK, count))
            with tracing.span("node.diagnose", positions=len(chunk)):
                answers = await compute(self._alignments_of, read, chunk, algorithms, options)
            for node, scored in answers:
                yield pb.StreamTrajectoryAlignmentsResponse(node=node, alignments=scored)

    async def SummarizeAlignments(
        self, request: pb.SummarizeAlignmentsRequest, context: Context
    ) -> pb.SummarizeAlignmentsResponse:
        """One statement for each teacher and algorithm over many trajectories."""
        found, teachers, units, versions = await self._summarize(
            request, [("trajectories", list(request.trajectories))]
        )
        (group,) = found.groups
        return pb.SummarizeAlignmentsResponse(
            summaries=[messages.summary(row, teachers, units) for row in group.rows],
            comparisons=[messages.comparison(pair, teachers, units) for pair in group.comparisons],
            tree_versions=versions.messages(),
        )

    async def CompareGroups(
        self, request: pb.CompareGroupsRequest, context: Context
    ) -> pb.CompareGroupsResponse:
        """Statements over groups of trajectories, and the differences between them."""
        names = [group.name for group in request.groups]
        found, teachers, units, versions = await self._summarize(
            request,
            [
                (f"groups[{i}].trajectories", list(group.trajectories))
                for i, group in enumerate(request.groups)
            ],
        )
        return pb.CompareGroupsResponse(
            groups=[
                messages.group(name, group, teachers, units)
                for name, group in zip(names, found.groups, strict=True)
            ],
            differences=[
                messages.group_difference(one, names, teachers, units) for one in found.differences
            ],
            tree_versions=versions.messages(),
        )

    async def _summarize(
        self,
        request: pb.SummarizeAlignmentsRequest | pb.CompareGroupsRequest,
        groups: Sequence[tuple[str, Sequence[str]]],
    ) -> tuple[GroupedSummary, Sequence[Teacher], Units, VersionsRead]:
        """Everything about groups of trajectories, each with the field that names it."""
        options = node_options(request.options, "options")
        algorithms = parse_algorithms(request.algorithms, "algorithms")
        if sum(len(trajectories) for _, trajectories in groups) > MAX_SUMMARIZED:
            raise InvalidArgument(groups[-1][0], f"more than {MAX_SUMMARIZED} trajectories in all")
        seen: set[str] = set()
        summarizer = Summarizer(algorithms, min_coverage=options.min_coverage, groups=len(groups))
        first: Read | None = None
        versions = VersionsRead()
        for place, (field, trajectories) in enumerate(groups):
            for i, trajectory in enumerate(trajectories):
                if trajectory in seen:
                    raise InvalidArgument(field, "a trajectory is named twice")
                seen.add(trajectory)
                nodes = await asyncio.to_thread(
                    self._resolver.trajectory,
                    trajectory,
                    positions=None,
                    verifier=options.verifier,
                    field=f"{field}[{i}]",
                )
                if first is not None:
                    check_alike(nodes, first.nodes, f"{field}[{i}]")
                read = await self._read(nodes, request.teachers, algorithms, options)
                versions.add(read)
                first = first or read
                await compute(summarizer.add, read.nodes, read.evidence, read.group, place)
        assert first is not None
        found = await compute(summarizer.finish_groups)
        return found, first.teachers, Units.of(first.nodes.verifier), versions

    async def CompareObjectives(
        self, request: pb.CompareObjectivesRequest, context: Context
    ) -> pb.CompareObjectivesResponse:
        """The same under several objectives, and where they disagree."""
        return await compare_objectives(request, self._resolver, self._read, self._catalog)

    async def _answer(
        self,
        method: str,
        request: Any,
        algorithms: Sequence[Algorithm],
        respond: Callable[[Read, Options], Any],
    ) -> bytes:
        """An answer about one node: kept bytes, or computed and kept. Sent as they are."""
        options = node_options(request.options, "options")
        key = (method, request.SerializeToString(deterministic=True))
        if (kept := await self._answers.get(key)) is not None:
            return kept
        nodes = await asyncio.to_thread(
            resolve_node, self._resolver, request.node, options.verifier, "node"
        )
        since = time.monotonic()
        read = await self._read(nodes, request.teachers, algorithms, options)
        with tracing.span("node.diagnose"):
            data = encode(await compute(respond, read, options))
        if read.is_final:
            self._answers.put(
                key, read.tree.id, read.view.version, data, latest=options.latest, since=since
            )
        return data

    async def _read(
        self,
        nodes: NodeSet,
        teacher_names: Sequence[str],
        algorithms: Sequence[Algorithm],
        options: Options,
    ) -> Read:
        with tracing.span("node.read", positions=len(nodes.positions)):
            return await self._read_all(nodes, teacher_names, algorithms, options)

    async def _read_all(
        self,
        nodes: NodeSet,
        teacher_names: Sequence[str],
        algorithms: Sequence[Algorithm],
        options: Options,
    ) -> Read:
        teachers = await asyncio.to_thread(self._resolver.teachers, teacher_names, nodes.policy)
        _check(nodes, teachers, algorithms, options)
        nodes = await self._demonstrations.attach(nodes, teachers)
        tree = await asyncio.to_thread(
            self._recorder.tree, nodes.policy, nodes.question, nodes.verifier
        )
        scores = await self._reader.scores(
            nodes, teachers, algorithms=algorithms, top_k=options.top_k
        )
        # All that enters is of one version: the nodes, what lies below, and a group's rollouts.
        below = positions_below(nodes)
        positions = sorted({*nodes.positions, *below})
        whole = await asyncio.to_thread(
            self._trees.look_up, tree.id, nodes.tokens, positions, nodes.verifier.key
        )
        place = dict(zip(positions, whole.nodes, strict=True))
        view = TreeView(whole.version, [place[t] for t in nodes.positions])
        if nodes.verifier.kind.is_fractional:
            told = await asyncio.to_thread(
                self._outcomes.moments, tree.id, nodes.verifier.key, whole.rollouts
            )
            nodes = replace(nodes, dispersion=told.dispersion)
        group = None
        if any(a.needs_group for a in algorithms):
            group = await asyncio.to_thread(self._group, tree.id, whole.rollouts, nodes)
        found = await self._back_up.improve(
            nodes,
            await compute(evidence, nodes, scores, view),
            TreeView(whole.version, [place[t] for t in below]),
            options.top_k,
        )
        sequels = await self._sequences.read(
            nodes, teachers, algorithms, found,
            tree_id=tree.id, rollouts=whole.rollouts, top_k=options.top_k,
        )  # fmt: skip
        return Read(nodes, teachers, tree, view, group, with_sequels(found, sequels))

    def _group(self, tree_id: int, rollouts: int, nodes: NodeSet) -> Group | None:
        """The question's free rollouts; for a trajectory that is not one of them, with it."""
        key, trajectory = nodes.verifier.key, nodes.trajectory
        found = self._outcomes.moments(tree_id, key, rollouts, free=True)
        own = trajectory is not None and trajectory.rollout_uid is None
        return Group.of(found, trajectory.rewards[key] if trajectory and own else None)

    def _alignments_of(
        self, read: Read, chunk: range, algorithms: Sequence[Algorithm], options: Options
    ) -> list[tuple[pb.Node, list[pb.Alignment]]]:
        return [self._alignments_at(read, i, algorithms, options) for i in chunk]

    def _alignments_at(
        self, read: Read, index: int, algorithms: Sequence[Algorithm], options: Options
    ) -> tuple[pb.Node, list[pb.Alignment]]:
        found = read.evidence[index]
        drawn = posterior(read.nodes, found)
        scored: list[Scored] = alignments(
            read.nodes,
            found,
            drawn,
            algorithms,
            group=read.group,
            min_coverage=options.min_coverage,
        )
        tokenizer = self._catalog.tokenizer(read.nodes.policy.model)
        units = Units.of(read.nodes.verifier)
        return (
            messages.node(read.nodes, found, drawn, read.view.version, tokenizer),
            [messages.alignment(s, found, read.teachers, tokenizer, units) for s in scored],
        )

    async def estimates(
        self, trajectory_id: str, teachers: Sequence[str], options: Options
    ) -> AsyncIterator[sharing_pb2.NodeEstimate]:
        """What GetNode answers at every token of a trajectory, all of one version of its tree."""
        nodes = await asyncio.to_thread(
            self._resolver.trajectory,
            trajectory_id,
            positions=None,
            verifier=options.verifier,
            field="trajectory",
        )
        read = await self._read(nodes, teachers, (), options)
        for i, found in enumerate(read.evidence):
            answer = await compute(self._node_response, read, options, i)
            told = messages.teacher_probabilities(found, read.teachers)
            yield sharing_pb2.NodeEstimate(answer=answer, teachers=told)

    def _node_response(self, read: Read, options: Options, index: int = 0) -> pb.GetNodeResponse:
        found = read.evidence[index]
        drawn = posterior(read.nodes, found)
        tokenizer = self._catalog.tokenizer(read.nodes.policy.model)
        units = Units.of(read.nodes.verifier)
        candidates, tail = messages.candidates(found, drawn, tokenizer, units)
        return pb.GetNodeResponse(
            node=messages.node(read.nodes, found, drawn, read.view.version, tokenizer),
            candidates=candidates,
            tail=tail,
        )

    def _ideal_response(self, read: Read, options: Options) -> pb.GetIdealGradientResponse:
        found = read.evidence[0]
        drawn = posterior(read.nodes, found)
        tokenizer = self._catalog.tokenizer(read.nodes.policy.model)
        response = messages.ideal_gradient(
            found,
            drawn,
            tokenizer,
            Units.of(read.nodes.verifier),
            min_coverage=options.min_coverage,
        )
        response.node.CopyFrom(
            messages.node(read.nodes, found, drawn, read.view.version, tokenizer)
        )
        return response


def _check(
    nodes: NodeSet,
    teachers: Sequence[Teacher],
    algorithms: Sequence[Algorithm],
    options: Options,
) -> None:
    """Refuse algorithms that the request gives no means to compute."""
    for i, algorithm in enumerate(algorithms):
        check_top_k(algorithm, options.top_k, f"algorithms[{i}].top_k")
        if algorithm.needs_teacher and not teachers:
            raise InvalidArgument(
                "teachers", f"algorithms[{i}] compares with a teacher; name at least one"
            )
        check_teachers(algorithm, teachers, f"algorithms[{i}]")
        if algorithm.form is Form.SAMPLED and None in nodes.observed:
            raise InvalidArgument(
                f"algorithms[{i}].form",
                "SAMPLED is the step of an observed token; set node.prefix.observed_token",
            )
        if nodes.trajectory is not None:
            continue
        if algorithm.is_rewarded:
            raise InvalidArgument(
                f"algorithms[{i}].form",
                "SAMPLED needs a reward to compare with its group's; name the node by a trajectory",
            )
        if algorithm.is_sequential and algorithm.form is Form.SAMPLED:
            raise InvalidArgument(
                f"algorithms[{i}].form",
                "SAMPLED is the step of one whole generation; name the node by a trajectory",
            )
