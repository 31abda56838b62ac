"""Parts of requests that several services share: which node, and what its numbers rest on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unmask.v1 import diagnosis_pb2 as pb

from unmask_server.nodes.resolve import NodeSet, Resolver, VerifierRef

DEFAULT_TOP_K = 20
DEFAULT_MIN_COVERAGE = 0.9


@dataclass(frozen=True, slots=True)
class Options:
    """NodeOptions with every default filled in."""

    verifier: VerifierRef
    top_k: int
    min_coverage: float
    latest: bool
    """Whether the newest counts are wanted."""


def node_options(options: pb.NodeOptions, field: str) -> Options:
    """The options to use for those that were given."""
    coverage = options.min_coverage if options.HasField("min_coverage") else DEFAULT_MIN_COVERAGE
    return Options(
        verifier=graded_by(options.verifier, options.objective, f"{field}.objective"),
        top_k=options.top_k or DEFAULT_TOP_K,
        min_coverage=coverage,
        latest=options.freshness == pb.FRESHNESS_LATEST,
    )


def graded_by(verifier: str, terms: Sequence[pb.ObjectiveTerm], terms_field: str) -> VerifierRef:
    """A verifier or an objective, of which a request may name one."""
    return VerifierRef(verifier, tuple((t.verifier, t.weight) for t in terms), terms_field)


def resolve_node(
    resolver: Resolver, node: pb.NodeRef, verifier: VerifierRef, field: str
) -> NodeSet:
    """The one node that a NodeRef names."""
    match node.WhichOneof("node"):
        case "trajectory":
            return resolver.trajectory(
                node.trajectory.trajectory,
                positions=[node.trajectory.position],
                verifier=verifier,
                field=f"{field}.trajectory.trajectory",
                position_field=f"{field}.trajectory.position",
            )
        case _:
            prefix = node.prefix
            kind = prefix.WhichOneof("prefix")
            return resolver.prefix(
                prefix.policy,
                prefix.question,
                tokens=tuple(prefix.tokens.ids) if kind == "tokens" else None,
                text=prefix.text if kind == "text" else None,
                observed=prefix.observed_token if prefix.HasField("observed_token") else None,
                verifier=verifier,
                field=f"{field}.prefix",
            )
