"""Catalog rows as things, and things as rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sqlalchemy import RowMapping

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
    VerifierKind,
)
from unmask_server.engines.base import Sampling


def digest(*parts: Any) -> str:
    """24 hexadecimal digits that identify plain data."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def pack_tokens(tokens: Sequence[int]) -> bytes:
    """Tokens as a blob of little-endian uint32."""
    return np.asarray(tokens, dtype="<u4").tobytes()


def unpack_tokens(blob: bytes) -> tuple[int, ...]:
    """Tokens of a blob."""
    return tuple(np.frombuffer(blob, dtype="<u4").tolist())


def prompting_data(prompting: Prompting) -> dict[str, Any]:
    """A prompting as JSON."""
    return {"style": prompting.style.value, "template": prompting.template}


def prompting_of(data: Mapping[str, Any]) -> Prompting:
    """The prompting that `prompting_data` made JSON."""
    return Prompting(PromptStyle(data["style"]), data["template"])


def policy_values(
    model: Model,
    sampling: Sampling,
    max_new_tokens: int,
    stop_ids: Sequence[int],
    prompting: Prompting,
) -> dict[str, Any]:
    """What a policy is: a row of `policy` but for its name, and what its id is the hash of."""
    values: dict[str, Any] = {
        "model_fingerprint": model.fingerprint,
        "temperature": float(sampling.temperature),
        "top_p": float(sampling.top_p),
        "top_k": sampling.top_k,
        "max_new_tokens": max_new_tokens,
        "stop_ids": list(stop_ids),
        "prompting": prompting_data(prompting),
    }
    if sampling.joint:
        values["joint"] = True
    return values


def teacher_values(
    model: Model,
    prompting: Prompting,
    *,
    context: str = "",
    template: str = "",
    control: Control | None = None,
    base_id: str | None = None,
    stored: str | None = None,
) -> dict[str, Any]:
    """What a teacher is: a row of `teacher` but for its name, and what its id is the hash of."""
    values: dict[str, Any] = {
        "model_fingerprint": model.fingerprint,
        "context": context,
        "context_template": template,
        "prompting": prompting_data(prompting),
    }
    parts = {
        "control": None if control is None else control.value,
        "base_id": base_id,
        "stored": stored,
    }
    return values | {name: value for name, value in parts.items() if value is not None}


def verifier_values(kind: VerifierKind, version: int, options: Mapping[str, str]) -> dict[str, Any]:
    """What a verifier is: a row of `verifier` but for its name, and what its id is the hash of."""
    return {"kind": kind.value, "version": version, "options": dict(options)}


def model_of(row: RowMapping) -> Model:
    """A row of `model`."""
    return Model(
        fingerprint=row["fingerprint"],
        source=row["source"],
        architecture=row["architecture"],
        vocab_size=row["vocab_size"],
        max_context=row["max_context"],
        tokenizer_fingerprint=row["tokenizer_fingerprint"],
        eos_ids=tuple(row["eos_ids"]),
        endpoints=tuple(row["endpoints"]),
        serving=row["serving"],
    )


def policy_of(row: RowMapping, model: Model) -> Policy:
    """A row of `policy`."""
    return Policy(
        id=row["id"],
        name=row["name"],
        model=model,
        sampling=Sampling(row["temperature"], row["top_p"], row["top_k"], row["joint"]),
        max_new_tokens=row["max_new_tokens"],
        stop_ids=tuple(row["stop_ids"]),
        prompting=prompting_of(row["prompting"]),
        created_at=row["created_at"],
    )


def teacher_of(row: RowMapping, model: Model, base: Teacher | None) -> Teacher:
    """A row of `teacher`."""
    return Teacher(
        id=row["id"],
        name=row["name"],
        model=model,
        context=row["context"],
        template=row["context_template"],
        prompting=prompting_of(row["prompting"]),
        created_at=row["created_at"],
        control=None if row["control"] is None else Control(row["control"]),
        base=base,
        stored=row["stored"],
    )


def verifier_of(row: RowMapping, terms: tuple[tuple[Verifier, float], ...] = ()) -> Verifier:
    """A row of `verifier`; `terms` are an objective's."""
    return Verifier(
        id=row["id"],
        key=row["key"],
        # One without options needs no name of its own: its kind says all.
        name=row["name"] or (None if row["options"] else row["kind"]),
        kind=VerifierKind(row["kind"]),
        version=row["version"],
        options=row["options"],
        created_at=row["created_at"],
        terms=terms,
    )


def question_of(row: RowMapping, verifier: Verifier) -> Question:
    """A row of `question`."""
    tokens = row["prompt_tokens"]
    return Question(
        id=row["id"],
        name=row["name"],
        fields=row["fields"],
        prompt_tokens=None if tokens is None else unpack_tokens(tokens),
        verifier=verifier,
        created_at=row["created_at"],
    )


def trajectory_of(row: RowMapping, rewards: Mapping[int, float]) -> Trajectory:
    """A row of `trajectory`."""
    return Trajectory(
        id=row["id"],
        policy_id=row["policy_id"],
        question_id=row["question_id"],
        tokens=unpack_tokens(row["tokens"]),
        finish=row["finish"],
        seed=row["seed"],
        ordinal=row["ordinal"],
        rollout_uid=row["rollout_uid"],
        rewards=rewards,
        created_at=row["created_at"],
    )
