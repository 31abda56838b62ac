"""What a growth is asked to do."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from unmask_server.diagnosis import Algorithm, Form, Loss, Rest, TopKOf
from unmask_server.diagnosis.allocation import Forecast, Objective, Range, Statistic


def _same(value: Any) -> Any:
    return value


_ENUMS: dict[str, Callable[[Any], Any]] = {
    "loss": Loss, "form": Form, "top_k_of": TopKOf, "rest": Rest, "reward_loss": Loss,
}  # fmt: skip
"""Settings of an algorithm that are stored by their value."""


class Allocation(enum.Enum):
    """How rollouts are spread over nodes and their candidates."""

    ADAPTIVE = "adaptive"
    """Where they lower the uncertainty of what is asked for most per token."""
    EQUAL = "equal"
    """The same number for each candidate, forced: the paper's targeted rollouts."""
    POLICY = "policy"
    """Free rollouts from the node: in proportion to the policy's probabilities."""
    DEPTH_WINDOWS = "depth_windows"
    """As EQUAL, with the same number for each window of positions, windows doubling in length."""


class State(enum.Enum):
    """Where a growth is."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    CANCELLED = "cancelled"
    FAILED = "failed"

    @property
    def ended(self) -> bool:
        """Whether it will not move any more."""
        return self in (State.SUCCEEDED, State.CANCELLED, State.FAILED)


@dataclass(frozen=True, slots=True)
class Target:
    """Nodes to grow: those of a trajectory, or the one after a prefix."""

    trajectory_id: str = ""
    position: int | None = None
    """Only this position of the trajectory; None for all of them."""
    policy_id: str = ""
    question_id: str = ""
    prefix: tuple[int, ...] = ()
    observed: int | None = None
    free: bool = False
    """Free rollouts whatever the allocation: a question as a whole."""


@dataclass(frozen=True, slots=True)
class GrowthSpec:
    """A growth as it is stored: everything by id, every default filled in."""

    targets: tuple[Target, ...]
    allocation: Allocation
    verifier: str
    """Id; empty for each question's own."""
    teacher_ids: tuple[str, ...]
    top_k: int
    rollouts_per_node: int
    """What each node should rest on, cached rollouts included; 0: spend the budget."""
    max_rollouts: int | None
    max_tokens: int | None
    algorithms: tuple[Algorithm, ...] = ()
    """Of the alignments that ADAPTIVE makes precise."""
    objective: Objective | None = None
    """When ADAPTIVE has done enough; None: when the budget is spent or the goal reached."""

    def to_json(self) -> dict[str, Any]:
        """Plain data; `from_json` is its inverse."""
        data = asdict(self)
        data["allocation"] = self.allocation.value
        for plain in data["algorithms"]:
            plain.update({key: v.value for key, v in plain.items() if isinstance(v, enum.Enum)})
        if self.objective is not None:
            data["objective"]["statistic"] = self.objective.statistic.value
        return data

    @staticmethod
    def from_json(data: dict[str, Any]) -> GrowthSpec:
        """The spec that `to_json` made plain."""
        targets = tuple(Target(**{**t, "prefix": tuple(t["prefix"])}) for t in data["targets"])
        algorithms = tuple(
            Algorithm(**{key: _ENUMS.get(key, _same)(v) for key, v in plain.items()})
            for plain in data.get("algorithms", ())
        )
        objective = data.get("objective")
        if objective is not None:
            objective = Objective(**{**objective, "statistic": Statistic(objective["statistic"])})
        return GrowthSpec(
            **{
                **data,
                "targets": targets,
                "allocation": Allocation(data["allocation"]),
                "teacher_ids": tuple(data["teacher_ids"]),
                "algorithms": algorithms,
                "objective": objective,
            }
        )


@dataclass(frozen=True, slots=True)
class Origin:
    """The call that started a growth, for logs and traces."""

    call_id: str = ""
    """Its request id; not the growth's `request_id`, which is a client's name for the growth."""
    call_trace: str = ""
    """The W3C traceparent of its span."""


NOBODY = Origin()


@dataclass(frozen=True, slots=True)
class Growth:
    """A growth and how far it is. Counts are of what is committed."""

    id: str
    request_id: str
    spec: GrowthSpec
    state: State
    error: str
    rollouts_sampled: int
    tokens_sampled: int
    rollouts_cached: int
    rollouts_counted: int
    rollouts_planned: int
    nodes: int
    nodes_flat: int
    attempt: int
    owner: str | None
    lease_expires_at: float | None
    created_at: float
    updated_at: float
    asked: GrowthSpec | None = None
    """The spec that it was started with; None: it was not extended since."""
    revision: int = 0
    """How often it was extended."""
    turn: int | None = None
    """Its place in the line of the growths that share a tree with it; None: not in it."""
    has_turn: bool = False
    waits_for: str | None = None
    """The growth whose turn it is."""
    nodes_settled: int = 0
    half_width: float | None = None
    """Of the 90% interval of what ADAPTIVE makes precise, now."""
    next_halving: Forecast | None = None
    """What halving it would cost; known when the growth has ended."""
    rollouts_pruned: int = 0
    """Of those sampled, gone since."""
    tokens_pruned: int = 0
    call_id: str = ""
    """See `Origin`."""
    call_trace: str = ""

    @property
    def first_spec(self) -> GrowthSpec:
        """The spec that it was started with."""
        return self.asked or self.spec

    @property
    def rollouts_left(self) -> int | None:
        """What the budget still allows; None if it does not limit rollouts."""
        limit = self.spec.max_rollouts
        return None if limit is None else max(0, limit - self.rollouts_sampled)

    @property
    def tokens_left(self) -> int | None:
        """What the budget still allows; None if it does not limit tokens."""
        limit = self.spec.max_tokens
        return None if limit is None else max(0, limit - self.tokens_sampled)


def forecast_of(data: Mapping[str, Any]) -> Forecast:
    """The forecast that `dataclasses.asdict` made plain."""
    return Forecast(Range(**data["rollouts"]), Range(**data["tokens"]), data["may_be_more"])
