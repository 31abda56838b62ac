"""What caches share, as messages, and messages as what they say."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from unmask.v1 import catalog_pb2, trajectory_pb2
from unmask.v1 import sharing_pb2 as pb

from unmask_server.api import catalog_messages
from unmask_server.api.catalog_messages import KINDS
from unmask_server.api.trajectory import FINISH_CODES, FINISHES
from unmask_server.catalog.errors import InvalidArgument
from unmask_server.catalog.types import (
    Control,
    Model,
    Policy,
    Prompting,
    PromptStyle,
    Question,
    Teacher,
    Trajectory,
    Verifier,
)
from unmask_server.engines.base import ZERO_LOGPROB, Sampling
from unmask_server.growth.imports import ImportedRollout, ImportedTrajectory
from unmask_server.growth.recorder import Finished
from unmask_server.growth.trajectories import UNKNOWN
from unmask_server.tree import StoredDistribution, StoredRollout, TreeRef

UID_BYTES = 16
MAX_SUM = 1.1
"""What probabilities may add up to: several scorings may have been merged, and engines differ."""

Key = Callable[[str, str], int]
"""From the id of a verifier, and a field, to its key."""

# ------------------------------------------------------------------------------------ as messages


def shared_policy(found: Policy) -> catalog_pb2.Policy:
    """A Policy, without where its model is served."""
    message = catalog_messages.policy(found)
    message.model.ClearField("endpoints")
    return message


def shared_teacher(found: Teacher) -> pb.SharedTeacher:
    """A SharedTeacher."""
    message = pb.SharedTeacher(
        teacher=catalog_messages.teacher(found),
        model=catalog_messages.model(found.model),
        prompting=catalog_messages.prompting(found.prompting),
    )
    message.model.ClearField("endpoints")
    message.teacher.ClearField("model")
    return message


def shared_rollout(
    found: StoredRollout, tree: TreeRef, verifier: Callable[[int], Verifier]
) -> pb.SharedRollout:
    """A SharedRollout, with all outcomes that `found` has."""
    return pb.SharedRollout(
        id=found.uid.hex(),
        policy_id=tree.policy_id,
        question_id=tree.question_id,
        tokens=found.tokens,
        forced=found.forced_depth,
        finish_reason=FINISHES[found.finish],
        outcomes=_outcomes(found.rewards, verifier),
    )


def shared_trajectory(
    found: Trajectory, verifier: Callable[[int], Verifier]
) -> pb.SharedTrajectory:
    """A SharedTrajectory."""
    return pb.SharedTrajectory(
        id=found.id,
        policy_id=found.policy_id,
        question_id=found.question_id,
        tokens=found.tokens,
        finish_reason=FINISHES[found.finish],
        rollout_id="" if found.rollout_uid is None else found.rollout_uid.hex(),
        seed=found.seed,
        ordinal=found.ordinal,
        outcomes=_outcomes(found.rewards, verifier),
    )


def shared_distribution(key: bytes, found: StoredDistribution) -> pb.SharedDistribution:
    """A SharedDistribution."""
    return pb.SharedDistribution(
        key=key.hex(),
        ids=found.ids.tolist(),
        logprobs=found.logprobs.tolist(),
        top_k=found.top_k,
        complete=found.complete,
    )


def _outcomes(
    rewards: Mapping[int, float], verifier: Callable[[int], Verifier]
) -> list[pb.SharedOutcome]:
    return [
        pb.SharedOutcome(verifier_id=verifier(key).id, reward=reward)
        for key, reward in sorted(rewards.items())
    ]


# --------------------------------------------------------------------------------- from messages


def policy_of(message: catalog_pb2.Policy, field: str) -> Policy:
    """The policy that a message describes."""
    sampling = message.sampling
    return Policy(
        id=message.id,
        name=message.name or None,
        model=model_of(message.model),
        sampling=Sampling(
            sampling.temperature,
            sampling.top_p,
            sampling.top_k,
            sampling.cut_order == catalog_pb2.CUT_ORDER_JOINT,
        ),
        max_new_tokens=message.max_new_tokens,
        stop_ids=tuple(message.stop_ids),
        prompting=prompting_of(message.prompting, f"{field}.prompting"),
        created_at=0.0,
    )


def model_of(message: catalog_pb2.Model) -> Model:
    """The model that a message describes."""
    serving: dict[str, Any] | None = None
    if message.HasField("serving"):
        # How far its numbers repeat widens intervals, wherever they are read.
        told = message.serving
        serving = {
            "served_name": told.served_name,
            "weight_version": told.weight_version,
            "version": told.engine_version or None,
            "noise": told.noise,
            "padding_mass": told.padding_mass,
        }
    return Model(
        fingerprint=message.fingerprint,
        source=message.source,
        architecture=message.architecture,
        vocab_size=message.vocab_size,
        max_context=message.max_context,
        tokenizer_fingerprint=message.tokenizer_fingerprint,
        eos_ids=tuple(message.eos_ids),
        serving=serving,
    )


def prompting_of(message: catalog_pb2.Prompting, field: str) -> Prompting:
    """The prompting that a message describes."""
    styles = {
        catalog_pb2.PROMPT_STYLE_CHAT: PromptStyle.CHAT,
        catalog_pb2.PROMPT_STYLE_RAW: PromptStyle.RAW,
    }
    if message.style not in styles:
        raise InvalidArgument(f"{field}.style", "is neither CHAT nor RAW")
    return Prompting(styles[message.style], message.template or None)


def verifier_of(message: catalog_pb2.Verifier, field: str) -> Verifier:
    """The verifier that a message describes."""
    if message.kind not in KINDS:
        raise InvalidArgument(f"{field}.kind", f"there is no kind {message.kind}")
    kind = KINDS[message.kind]
    return Verifier(
        id=message.id,
        key=0,
        # One without options is called by its kind, which is no name of its own.
        name=None if message.name in ("", kind.value) else message.name,
        kind=kind,
        version=message.version,
        options=dict(message.options),
        created_at=0.0,
    )


def question_of(message: catalog_pb2.Question, verifier: Verifier) -> Question:
    """The question that a message describes."""
    return Question(
        id=message.id,
        name=message.name or None,
        fields=dict(message.fields),
        prompt_tokens=tuple(message.prompt_tokens) or None,
        verifier=verifier,
        created_at=0.0,
    )


def teacher_of(message: pb.SharedTeacher, field: str) -> Teacher:
    """The teacher that a message describes; what it is a control of is named in the message."""
    told = message.teacher
    control: Control | None = None
    if told.control != catalog_pb2.CONTROL_UNSPECIFIED:
        try:
            name = catalog_pb2.Control.Name(told.control)
        except ValueError:
            raise InvalidArgument(f"{field}.control", f"none is {told.control}") from None
        control = Control[name.removeprefix("CONTROL_")]
    return Teacher(
        id=told.id,
        name=told.name or None,
        model=model_of(message.model),
        context=told.context.name,
        template=told.context.template,
        prompting=prompting_of(message.prompting, f"{field}.prompting"),
        created_at=0.0,
        control=control,
        stored=told.stored or None,
    )


def rollout_of(message: pb.SharedRollout, key: Key, field: str) -> ImportedRollout:
    """The rollout that a message tells of."""
    return ImportedRollout(
        field=field,
        finished=Finished(
            uid=bytes.fromhex(message.id),
            tokens=tuple(message.tokens),
            forced_depth=message.forced,
            finish=_finish(message.finish_reason),
        ),
        policy_id=message.policy_id,
        question_id=message.question_id,
        outcomes=_rewards(message.outcomes, key, field),
    )


def trajectory_of(message: pb.SharedTrajectory, key: Key, field: str) -> ImportedTrajectory:
    """The trajectory that a message tells of."""
    uid = bytes.fromhex(message.rollout_id) if message.rollout_id else None
    told = Trajectory(
        id=message.id,
        policy_id=message.policy_id,
        question_id=message.question_id,
        tokens=tuple(message.tokens),
        finish=_finish(message.finish_reason),
        seed=message.seed if message.HasField("seed") else None,
        ordinal=message.ordinal if message.HasField("ordinal") else None,
        rollout_uid=uid,
        rewards=_rewards(message.outcomes, key, field),
        created_at=0.0,
    )
    return ImportedTrajectory(field, told)


def distribution_of(message: pb.SharedDistribution, field: str) -> tuple[bytes, StoredDistribution]:
    """The key and the distribution that a message tells of.

    Raises:
        InvalidArgument: it is no distribution.

    """
    ids = np.asarray(message.ids, dtype=np.int32)
    logprobs = np.asarray(message.logprobs, dtype=np.float32)
    if len(ids) != len(logprobs) or not 0 <= message.top_k <= len(ids):
        raise InvalidArgument(
            f"{field}.logprobs",
            f"{len(logprobs)} of {len(ids)} ids, {message.top_k} of them the likeliest",
        )
    if (ids < 0).any() or len(np.unique(ids)) < len(ids):
        raise InvalidArgument(f"{field}.ids", "an id is negative, or there twice")
    if not ((logprobs >= ZERO_LOGPROB) & (logprobs <= 0.0)).all():
        raise InvalidArgument(f"{field}.logprobs", "one is no log-probability")
    if (total := float(np.exp(logprobs.astype(np.float64)).sum())) > MAX_SUM:
        raise InvalidArgument(
            f"{field}.logprobs", f"the probabilities add up to {total:.6g}, more than 1"
        )
    return bytes.fromhex(message.key), StoredDistribution(
        ids, logprobs, message.top_k, message.complete
    )


def _finish(reason: trajectory_pb2.FinishReason.ValueType) -> int:
    code = FINISH_CODES[reason]
    return UNKNOWN if code is None else code


def _rewards(given: Iterable[pb.SharedOutcome], key: Key, field: str) -> dict[int, float]:
    return {
        key(one.verifier_id, f"{field}.outcomes[{i}].verifier_id"): one.reward
        for i, one in enumerate(given)
    }
