"""The tables of an export: their columns, from messages to rows and back.

A row is plain data, the same for JSONL and Parquet. See docs/sharing.md for what columns mean.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
from google.protobuf.message import Message

from unmask.v1 import catalog_pb2, diagnosis_pb2, trajectory_pb2
from unmask.v1 import sharing_pb2 as pb

Row = dict[str, Any]

TYPES = {
    "text": "string",
    "int": "int64",
    "id": "int32",
    "float": "float64",
    "bool": "bool_",
}
"""Kinds of columns that are one pyarrow type each; `ids`, `logprobs` and `by_id` are nested."""

_FINISH_NAMES = {
    trajectory_pb2.FINISH_REASON_STOP: "stop",
    trajectory_pb2.FINISH_REASON_LENGTH: "length",
    trajectory_pb2.FINISH_REASON_UNSPECIFIED: None,
}
_FINISHES = {name: number for number, name in _FINISH_NAMES.items()}


@dataclass(frozen=True, slots=True)
class Table:
    """A table of an export."""

    name: str
    """The field of CacheRecords, too."""
    columns: Mapping[str, str]
    """Kinds by name."""
    rows: Callable[[Any], Iterator[Row]]
    """A message's rows: one, or for an estimate one a candidate."""
    message: Callable[[Row], Message] | None
    """A row's message; None for what is only read.

    Raises:
        ValueError, KeyError, TypeError: it is none.

    """


def _described(kind: type[Message]) -> tuple[Any, Any]:
    def rows(message: Any) -> Iterator[Row]:
        told = message.teacher if isinstance(message, pb.SharedTeacher) else message
        described = MessageToDict(message, preserving_proto_field_name=True)
        yield {"id": told.id, "name": told.name or None, "description": json.dumps(described)}

    def message(row: Row) -> Message:
        try:
            return ParseDict(json.loads(row["description"]), kind())
        except ParseError as error:
            raise ValueError(str(error)) from None

    return rows, message


def _rollout_rows(found: pb.SharedRollout) -> Iterator[Row]:
    yield {
        "id": found.id,
        "policy_id": found.policy_id,
        "question_id": found.question_id,
        "tokens": list(found.tokens),
        "forced": found.forced,
        "finish": _FINISH_NAMES[found.finish_reason],
        "outcomes": {one.verifier_id: one.reward for one in found.outcomes},
    }


def _rollout(row: Row) -> pb.SharedRollout:
    return pb.SharedRollout(
        id=row["id"],
        policy_id=row["policy_id"],
        question_id=row["question_id"],
        tokens=row["tokens"],
        forced=row["forced"],
        finish_reason=_FINISHES[row["finish"]],
        outcomes=_outcomes(row["outcomes"]),
    )


def _trajectory_rows(found: pb.SharedTrajectory) -> Iterator[Row]:
    yield {
        "id": found.id,
        "policy_id": found.policy_id,
        "question_id": found.question_id,
        "tokens": list(found.tokens),
        "finish": _FINISH_NAMES[found.finish_reason],
        "rollout_id": found.rollout_id or None,
        "seed": found.seed if found.HasField("seed") else None,
        "ordinal": found.ordinal if found.HasField("ordinal") else None,
        "outcomes": {one.verifier_id: one.reward for one in found.outcomes},
    }


def _trajectory(row: Row) -> pb.SharedTrajectory:
    return pb.SharedTrajectory(
        id=row["id"],
        policy_id=row["policy_id"],
        question_id=row["question_id"],
        tokens=row["tokens"],
        finish_reason=_FINISHES[row["finish"]],
        rollout_id=row["rollout_id"] or "",
        seed=row["seed"],
        ordinal=row["ordinal"],
        outcomes=_outcomes(row["outcomes"]),
    )


def _distribution_rows(found: pb.SharedDistribution) -> Iterator[Row]:
    yield {
        "key": found.key,
        "ids": list(found.ids),
        # Nine digits are enough for a float32 to come back as it was.
        "logprobs": [float(f"{value:.9g}") for value in found.logprobs],
        "top_k": found.top_k,
        "complete": found.complete,
    }


def _distribution(row: Row) -> pb.SharedDistribution:
    return pb.SharedDistribution(
        key=row["key"],
        ids=row["ids"],
        logprobs=row["logprobs"],
        top_k=row["top_k"],
        complete=row["complete"],
    )


def _estimate_rows(estimate: pb.NodeEstimate) -> Iterator[Row]:
    found = estimate.answer
    node = found.node
    about = {
        "policy_id": node.policy_id,
        "question_id": node.question_id,
        "verifier_id": node.verifier_id,
        "trajectory_id": node.trajectory_id,
        "position": node.position,
        "tree_version": node.tree_version,
        "observed_token": node.observed.id if node.HasField("observed") else None,
        "node_rollouts": node.rollouts,
        **_interval("node_success", node.success),
    }
    tail = [found.tail] if found.HasField("tail") else []
    for i, one in enumerate((*found.candidates, *tail)):
        known = one.HasField("token")
        yield {
            **about,
            "token": one.token.id if known else None,
            "text": one.token.text if known else None,
            "probability": one.probability,
            "raw_probability": one.raw_probability,
            "teachers": {told.teacher_id: told.probabilities[i] for told in estimate.teachers},
            "rollouts": one.rollouts,
            "reward_sum": one.reward_sum,
            "truncated": one.truncated,
            "exact": one.exact,
            **_interval("success", one.success),
        }


def _interval(name: str, found: diagnosis_pb2.Interval) -> dict[str, float]:
    return {
        f"{name}_median": found.median,
        f"{name}_low": found.low,
        f"{name}_high": found.high,
    }


def _outcomes(given: Any) -> list[pb.SharedOutcome]:
    # pyarrow gives a map as pairs.
    pairs = given.items() if isinstance(given, Mapping) else given
    return [pb.SharedOutcome(verifier_id=name, reward=reward) for name, reward in pairs]


_PATH = {"policy_id": "text", "question_id": "text", "tokens": "ids"}
_DESCRIBED = {"id": "text", "name": "text", "description": "text"}

TABLES = {
    table.name: table
    for table in (
        Table("verifiers", _DESCRIBED, *_described(catalog_pb2.Verifier)),
        Table("policies", _DESCRIBED, *_described(catalog_pb2.Policy)),
        Table("questions", _DESCRIBED, *_described(catalog_pb2.Question)),
        Table("teachers", _DESCRIBED, *_described(pb.SharedTeacher)),
        Table(
            "rollouts",
            {"id": "text", **_PATH, "forced": "id", "finish": "text", "outcomes": "by_id"},
            _rollout_rows,
            _rollout,
        ),
        Table(
            "trajectories",
            {
                "id": "text",
                **_PATH,
                "finish": "text",
                "rollout_id": "text",
                "seed": "int",
                "ordinal": "id",
                "outcomes": "by_id",
            },
            _trajectory_rows,
            _trajectory,
        ),
        Table(
            "distributions",
            {
                "key": "text",
                "ids": "ids",
                "logprobs": "logprobs",
                "top_k": "id",
                "complete": "bool",
            },
            _distribution_rows,
            _distribution,
        ),
        Table(
            "estimates",
            {
                "policy_id": "text",
                "question_id": "text",
                "verifier_id": "text",
                "trajectory_id": "text",
                "position": "id",
                "tree_version": "int",
                "observed_token": "id",
                "node_rollouts": "int",
                "node_success_median": "float",
                "node_success_low": "float",
                "node_success_high": "float",
                "token": "id",
                "text": "text",
                "probability": "float",
                "raw_probability": "float",
                "teachers": "by_id",
                "rollouts": "int",
                "reward_sum": "float",
                "truncated": "int",
                "exact": "bool",
                "success_median": "float",
                "success_low": "float",
                "success_high": "float",
            },
            _estimate_rows,
            None,
        ),
    )
}
"""By name, what is referred to before what refers to it."""
