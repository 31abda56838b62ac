"""The catalog's things as messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unmask.v1 import catalog_pb2 as pb

from unmask_server.api.times import timestamp
from unmask_server.catalog.errors import AlreadyExists, InvalidArgument
from unmask_server.catalog.types import (
    Model,
    Policy,
    Prompting,
    PromptStyle,
    Question,
    RenderedPrompt,
    Teacher,
    Verifier,
    VerifierKind,
)
from unmask_server.engines.base import Sampling
from unmask_server.reasons import Reason

KINDS = {
    pb.VERIFIER_KIND_LAST_NUMBER: VerifierKind.LAST_NUMBER,
    pb.VERIFIER_KIND_HASH_ANSWER: VerifierKind.HASH_ANSWER,
    pb.VERIFIER_KIND_BOXED: VerifierKind.BOXED,
    pb.VERIFIER_KIND_EXACT: VerifierKind.EXACT,
    pb.VERIFIER_KIND_REGEX: VerifierKind.REGEX,
    pb.VERIFIER_KIND_MATH_VERIFY: VerifierKind.MATH_VERIFY,
    pb.VERIFIER_KIND_REASONING_GYM: VerifierKind.REASONING_GYM,
    pb.VERIFIER_KIND_FORMAT: VerifierKind.FORMAT,
    pb.VERIFIER_KIND_LENGTH: VerifierKind.LENGTH,
    pb.VERIFIER_KIND_EXTERNAL: VerifierKind.EXTERNAL,
    pb.VERIFIER_KIND_OBJECTIVE: VerifierKind.OBJECTIVE,
}
_KIND_NUMBERS = {kind: number for number, kind in KINDS.items()}
_STYLES = {PromptStyle.CHAT: pb.PROMPT_STYLE_CHAT, PromptStyle.RAW: pb.PROMPT_STYLE_RAW}


def model(found: Model) -> pb.Model:
    """A Model."""
    return pb.Model(
        fingerprint=found.fingerprint,
        source=found.source,
        architecture=found.architecture,
        vocab_size=found.vocab_size,
        max_context=found.max_context,
        tokenizer_fingerprint=found.tokenizer_fingerprint,
        eos_ids=found.eos_ids,
        endpoints=found.endpoints,
        serving=_serving(found.serving),
    )


def _serving(found: Mapping[str, Any] | None) -> pb.Serving | None:
    if found is None:
        return None
    return pb.Serving(
        served_name=found["served_name"],
        weight_version=found["weight_version"],
        engine_version=found["version"] or "",
        noise=found["noise"],
        padding_mass=found["padding_mass"],
    )


def _cut_order(sampling: Sampling) -> pb.CutOrder.ValueType:
    if not sampling.top_k or sampling.top_p >= 1.0:
        return pb.CUT_ORDER_UNSPECIFIED
    return pb.CUT_ORDER_JOINT if sampling.joint else pb.CUT_ORDER_TOP_K_FIRST


def prompting(found: Prompting) -> pb.Prompting:
    """A Prompting."""
    return pb.Prompting(style=_STYLES[found.style], template=found.template or "")


def policy(found: Policy) -> pb.Policy:
    """A Policy."""
    return pb.Policy(
        id=found.id,
        name=found.name or "",
        model=model(found.model),
        sampling=pb.Sampling(
            temperature=found.sampling.temperature,
            top_p=found.sampling.top_p,
            top_k=found.sampling.top_k,
            cut_order=_cut_order(found.sampling),
        ),
        max_new_tokens=found.max_new_tokens,
        stop_ids=found.stop_ids,
        prompting=prompting(found.prompting),
        create_time=timestamp(found.created_at),
    )


def teacher(found: Teacher) -> pb.Teacher:
    """A Teacher."""
    return pb.Teacher(
        id=found.id,
        name=found.name or "",
        model=None if found.is_stored else model(found.model),
        context=(
            None if found.is_stored else pb.Context(name=found.context, template=found.template)
        ),
        prompting=None if found.is_stored else prompting(found.prompting),
        create_time=timestamp(found.created_at),
        stored=found.stored or "",
        control=pb.Control.Value(
            f"CONTROL_{found.control.name if found.control else 'UNSPECIFIED'}"
        ),
        base_teacher_id=found.base.id if found.base else "",
    )


def rendered(found: RenderedPrompt) -> pb.RenderedPrompt:
    """A RenderedPrompt."""
    return pb.RenderedPrompt(text=found.text, tokens=found.tokens, warnings=found.warnings)


def question(found: Question) -> pb.Question:
    """A Question."""
    return pb.Question(
        id=found.id,
        name=found.name or "",
        fields={key: str(value) for key, value in found.fields.items()},
        prompt_tokens=found.prompt_tokens or (),
        verifier_id=found.verifier.id,
        create_time=timestamp(found.created_at),
    )


def verifier(found: Verifier) -> pb.Verifier:
    """A Verifier."""
    return pb.Verifier(
        id=found.id,
        name=found.name or "",
        kind=_KIND_NUMBERS[found.kind],
        version=found.version,
        options={key: str(value) for key, value in found.options.items()},
    )


def question_error(found: InvalidArgument | AlreadyExists | str) -> pb.QuestionError:
    """Why a question was not registered; a text is what is wrong with a whole line."""
    match found:
        case InvalidArgument():
            field, reason, text = found.field, Reason.INVALID_FIELD, found.description
        case AlreadyExists():
            field, reason, text = found.field, found.reason, found.description
        case _:
            field, reason, text = "", Reason.INVALID_FIELD, found
    return pb.QuestionError(reason=reason.name, field=field, message=text)
