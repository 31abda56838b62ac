"""Growths in answers, and what requests ask of those that are there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from unmask.v1 import growth_pb2 as pb

from unmask_server.api.precision import extended_precision, forecast_message, precision_message
from unmask_server.api.times import timestamp
from unmask_server.catalog.errors import InvalidArgument
from unmask_server.config import Settings
from unmask_server.growth.spec import Allocation, Growth, GrowthSpec, State

_STATES = {
    State.QUEUED: pb.GROWTH_STATE_QUEUED,
    State.RUNNING: pb.GROWTH_STATE_RUNNING,
    State.PAUSED: pb.GROWTH_STATE_PAUSED,
    State.SUCCEEDED: pb.GROWTH_STATE_SUCCEEDED,
    State.CANCELLED: pb.GROWTH_STATE_CANCELLED,
    State.FAILED: pb.GROWTH_STATE_FAILED,
}
_NAMED = {number: state for state, number in _STATES.items()}


def states(wanted: Sequence[pb.GrowthState.ValueType]) -> tuple[State, ...]:
    """The states that a request names."""
    return tuple(_NAMED[number] for number in wanted)


def budget(
    wanted: pb.Budget, settings: Settings, least: GrowthSpec | None = None
) -> tuple[int | None, int | None]:
    """Rollouts and tokens that may be sampled; None: not limited.

    Args:
        wanted: what the request says.
        settings: with the server's limits.
        least: of the growth that is extended: a limit may not fall, and one that is absent stays.

    """
    had = (least.max_rollouts, least.max_tokens) if least else (None, None)
    rollouts = wanted.rollouts if wanted.HasField("rollouts") else had[0]
    tokens = wanted.tokens if wanted.HasField("tokens") else had[1]
    for name, value, before, limit in (
        ("rollouts", rollouts, had[0], settings.max_rollouts),
        ("tokens", tokens, had[1], settings.max_tokens),
    ):
        if value is None or value == before:
            continue
        if value > limit:
            raise InvalidArgument(
                f"budget.{name}", f"{value} is more than this server's limit, {limit}"
            )
        if before is not None and value < before:
            raise InvalidArgument(
                f"budget.{name}", f"{value} in all is less than the {before} it has; pause it"
            )
    return rollouts, tokens


def rollouts_per_node(wanted: int, settings: Settings) -> int:
    """The goal that a request sets for each node."""
    if wanted > settings.max_rollouts:
        raise InvalidArgument(
            "rollouts_per_node", f"more than this server's limit, {settings.max_rollouts}"
        )
    return wanted


def check_goal(spec: GrowthSpec) -> None:
    """Refuse a growth that has nothing to end it."""
    if spec.objective and not spec.rollouts_per_node and any(t.free for t in spec.targets):
        raise InvalidArgument(
            "rollouts_per_node", "say how many for question targets: they have no alignment"
        )


def extended(request: pb.ExtendGrowthRequest, spec: GrowthSpec, settings: Settings) -> GrowthSpec:
    """The spec with what the request changes."""
    found = spec
    if request.HasField("budget"):
        rollouts, tokens = budget(request.budget, settings, spec)
        found = replace(found, max_rollouts=rollouts, max_tokens=tokens)
    if request.HasField("rollouts_per_node"):
        goal = rollouts_per_node(request.rollouts_per_node, settings)
        found = replace(found, rollouts_per_node=goal)
    if request.HasField("precision"):
        if spec.allocation is not Allocation.ADAPTIVE:
            raise InvalidArgument("precision", "only ADAPTIVE allocation works towards one")
        objective = extended_precision(
            request.precision, spec.objective, len(spec.teacher_ids), "precision"
        )
        found = replace(found, objective=objective)
    check_goal(found)
    return found


def growth_message(growth: Growth, seconds_left: float | None) -> pb.Growth:
    """A growth as it is committed."""
    spec = growth.spec
    ahead = growth.next_halving
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
        seconds_left=seconds_left,
        create_time=timestamp(growth.created_at),
        update_time=timestamp(growth.updated_at),
        nodes_settled=growth.nodes_settled,
        half_width=growth.half_width,
        next_halving=None if ahead is None else forecast_message(ahead, None),
        rollouts_counted=growth.rollouts_counted,
        waits_for=growth.waits_for or "",
        budget=pb.Budget(rollouts=spec.max_rollouts, tokens=spec.max_tokens),
        rollouts_per_node=spec.rollouts_per_node,
        precision=None if spec.objective is None else precision_message(spec.objective),
    )
