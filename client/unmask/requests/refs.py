"""What requests refer to: resources by id, name or message; nodes; growth targets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

from unmask.objectives import Terms, parse_terms
from unmask.v1 import diagnosis_pb2, growth_pb2, trajectory_pb2


@runtime_checkable
class HasId(Protocol):
    """A message with an id: a policy, a teacher, a question, a verifier, a trajectory, a growth."""

    id: str


Ref = str | HasId
"""A resource: its id or name, or its message."""

Prefix = str | Sequence[int] | trajectory_pb2.TokenIds
"""Generated tokens so far, as ids or as text."""

Target = str | (
    trajectory_pb2.Trajectory
    | diagnosis_pb2.NodeRef
    | growth_pb2.QuestionTarget
    | growth_pb2.GrowthTarget
)
"""What to grow: a trajectory (its id or message), a node, a question under a policy."""


def ref(resource: Ref) -> str:
    """The id or name to send."""
    return resource if isinstance(resource, str) else resource.id


def refs(resources: Ref | Iterable[Ref]) -> list[str]:
    """The ids or names to send; one resource is a list of one."""
    if isinstance(resources, str | HasId):
        return [ref(resources)]
    return [ref(resource) for resource in resources]


def node(
    *,
    trajectory: Ref | None = None,
    position: int | None = None,
    policy: Ref | None = None,
    question: Ref | None = None,
    prefix: Prefix | None = None,
    observed_token: int | None = None,
) -> diagnosis_pb2.NodeRef:
    """Names a node, either way.

    Args:
        trajectory: the trajectory, with
        position: which of its tokens, from 0. The node is the one before it.
        policy: the policy, with
        question: the question, and
        prefix: the tokens generated so far, as ids or as text; None: none.
        observed_token: the id of the token whose correction is in question.

    Raises:
        ValueError: neither way is complete, or both are mixed.

    """
    if trajectory is not None:
        if position is None:
            raise ValueError("position: say which token of the trajectory, from 0")
        others = {
            "policy": policy,
            "question": question,
            "prefix": prefix,
            "observed_token": observed_token,
        }
        for name, value in others.items():
            if value is not None:
                raise ValueError(f"{name}: not together with a trajectory, which says it already")
        return diagnosis_pb2.NodeRef(
            trajectory=diagnosis_pb2.TrajectoryPosition(
                trajectory=ref(trajectory), position=position
            )
        )
    if position is not None:
        raise ValueError("position: only with a trajectory")
    if policy is None or question is None:
        raise ValueError("node: give trajectory and position, or policy and question")
    return diagnosis_pb2.NodeRef(
        prefix=diagnosis_pb2.PrefixNode(
            policy=ref(policy),
            question=ref(question),
            tokens=_tokens(prefix),
            observed_token=observed_token,
            **({"text": prefix} if isinstance(prefix, str) else {}),
        )
    )


def question_target(policy: Ref, question: Ref) -> growth_pb2.QuestionTarget:
    """A question as a whole, as a target to grow: free rollouts from its beginning."""
    return growth_pb2.QuestionTarget(policy=ref(policy), question=ref(question))


def target(what: Target) -> growth_pb2.GrowthTarget:
    """The message for a target."""
    match what:
        case growth_pb2.GrowthTarget():
            return what
        case diagnosis_pb2.NodeRef():
            return growth_pb2.GrowthTarget(node=what)
        case growth_pb2.QuestionTarget():
            return growth_pb2.GrowthTarget(question=what)
        case _:
            return growth_pb2.GrowthTarget(trajectory=ref(what))


def options(
    verifier: Ref = "",
    top_k: int = 0,
    min_coverage: float | None = None,
    latest: bool = False,
    objective: Terms = (),
) -> diagnosis_pb2.NodeOptions:
    """What a node's numbers rest on.

    Args:
        verifier: grades the rollouts; empty: the question's own.
        top_k: how many of the likeliest tokens are candidates; 0: 20.
        min_coverage: mass on the candidates below which the answer says LOW_COVERAGE; None: 0.9.
        latest: whether to read everything committed before the call, also by other servers.
        objective: instead of a verifier, a weighted sum of several; see `unmask.objectives`.

    """
    return diagnosis_pb2.NodeOptions(
        verifier=ref(verifier),
        top_k=top_k,
        min_coverage=min_coverage,
        freshness=(
            diagnosis_pb2.FRESHNESS_LATEST if latest else diagnosis_pb2.FRESHNESS_UNSPECIFIED
        ),
        objective=parse_terms(objective),
    )


def _tokens(prefix: Prefix | None) -> trajectory_pb2.TokenIds | None:
    if prefix is None or isinstance(prefix, str):
        return None
    if isinstance(prefix, trajectory_pb2.TokenIds):
        return prefix
    return trajectory_pb2.TokenIds(ids=prefix)


def split_model(model: str) -> tuple[str, list[str]]:
    """A model as it is written in one argument: its directory, and the SGLang servers that run it.

    `DIR`, `http://host:30000` (where the servers' own directory can be read by Unmask's server),
    or `DIR@http://host:30000`; with commas between several servers.
    """
    for scheme in ("http://", "https://"):
        if model.startswith(scheme):
            return "", model.split(",")
        folder, at, rest = model.partition("@" + scheme)
        if at:
            return folder, (scheme + rest).split(",")
    return model, []
