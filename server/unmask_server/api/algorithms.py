"""Algorithms in requests, with every default filled in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, TypedDict, TypeVar

from unmask.v1 import diagnosis_pb2 as pb

from unmask_server.catalog.errors import FailedPrecondition, InvalidArgument
from unmask_server.catalog.types import Teacher
from unmask_server.diagnosis import Algorithm, Form, Loss, Rest, TopKOf
from unmask_server.diagnosis.algorithms import POLICY_GRADIENTS

MAX_ALGORITHMS = 32
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 100.0

_LOSSES: Mapping[int, Loss] = {pb.Loss.Value(f"LOSS_{loss.name}"): loss for loss in Loss}
_FORMS: Mapping[int, Form] = {pb.Form.Value(f"FORM_{form.name}"): form for form in Form}
_RESTS: Mapping[int, Rest] = {pb.TopKRest.Value(f"TOP_K_REST_{rest.name}"): rest for rest in Rest}
_TOP_K_OF: Mapping[int, TopKOf] = {pb.TopKOf.Value(f"TOP_K_OF_{of.name}"): of for of in TopKOf}
_SINGLE_STEP: Mapping[int, bool] = {
    pb.DECOMPOSITION_SINGLE_STEP: True,
    pb.DECOMPOSITION_NONE: False,
}
_POSITIVE: tuple[Literal["ratio_clip", "token_clip", "reward_weight"], ...] = (
    "ratio_clip",
    "token_clip",
    "reward_weight",
)

Value = TypeVar("Value")


def parse_algorithms(wanted: Sequence[pb.Algorithm], field: str) -> list[Algorithm]:
    """The algorithms asked for; expected reverse KL if none was."""
    if not wanted:
        return [Algorithm(Loss.REVERSE_KL)]
    if len(wanted) > MAX_ALGORITHMS:
        raise InvalidArgument(field, f"more than {MAX_ALGORITHMS}")
    parsed = [_parse(algorithm, f"{field}[{i}]") for i, algorithm in enumerate(wanted)]
    for i, algorithm in enumerate(parsed):
        if algorithm in parsed[:i]:
            raise InvalidArgument(f"{field}[{i}]", "named twice")
    return parsed


def check_top_k(algorithm: Algorithm, top_k: int, field: str) -> None:
    """Refuse an algorithm over more tokens than are looked at.

    Raises:
        InvalidArgument: its top k is above the request's `top_k`.

    """
    if algorithm.top_k > top_k:
        raise InvalidArgument(
            field, f"{algorithm.top_k} is above options.top_k, {top_k}; ask for as many there"
        )


def check_teachers(algorithm: Algorithm, teachers: Sequence[Teacher], field: str) -> None:
    """Refuse a loss that not all of the teachers are known well enough for.

    Raises:
        InvalidArgument: it reads whole generations, and a teacher is a control or a stored one.
        FailedPrecondition: it has another temperature than 1 or cuts single tokens' terms, and a
            teacher, or what it is of, is a stored one.

    """
    if not algorithm.needs_teacher:
        return
    whole = algorithm.is_sequential or algorithm.reads_path
    for k, teacher in enumerate(teachers):
        if whole and (teacher.control is not None or teacher.is_stored):
            what = "a control" if teacher.control is not None else "a stored teacher"
            raise InvalidArgument(
                f"teachers[{k}]",
                f"{field} reads a teacher's probabilities of whole generations, which {what} has "
                "only at a node; ask for them in another call",
            )
        if teacher.is_stored and algorithm.temperature != 1.0:
            raise FailedPrecondition(
                f"{field}.temperature: teachers[{k}] is a stored teacher, or a control of one, "
                f"known at temperature 1 only: what its logits over {algorithm.temperature:g} give "
                "cannot be told from its likeliest tokens"
            )
        if teacher.is_stored and algorithm.token_clip > 0.0:
            raise FailedPrecondition(
                f"{field}.token_clip: teachers[{k}] is a stored teacher, or a control of one: the "
                "terms of tokens that are not listed are not known one by one"
            )


def _parse(wanted: pb.Algorithm, field: str) -> Algorithm:
    loss = _LOSSES.get(wanted.loss)
    if loss is None:
        raise InvalidArgument(f"{field}.loss", "say which loss")
    beta = wanted.beta if wanted.HasField("beta") else 0.5
    if wanted.HasField("beta") and loss is not Loss.JSD:
        raise InvalidArgument(f"{field}.beta", "only JSD has a beta")
    if not 0 < beta < 1:
        raise InvalidArgument(
            f"{field}.beta", f"{beta} is not in (0, 1); use FORWARD_KL for 0 and REVERSE_KL for 1"
        )
    temperature = wanted.temperature if wanted.HasField("temperature") else 1.0
    if not MIN_TEMPERATURE <= temperature <= MAX_TEMPERATURE:
        raise InvalidArgument(
            f"{field}.temperature",
            f"{temperature} is not in [{MIN_TEMPERATURE}, {MAX_TEMPERATURE}]; "
            "at 0 there is no gradient",
        )
    if wanted.HasField("top_k") and wanted.top_k < 1:
        raise InvalidArgument(f"{field}.top_k", f"{wanted.top_k} is below 1")
    for name in _POSITIVE:
        number = getattr(wanted, name)
        if wanted.HasField(name) and not (math.isfinite(number) and number > 0):
            raise InvalidArgument(f"{field}.{name}", f"{number} is not a number above 0")
    share = wanted.student_share if wanted.HasField("student_share") else 1.0
    if not 0 <= share <= 1:
        raise InvalidArgument(f"{field}.student_share", f"{share} is not in [0, 1]")
    of = TopKOf.TEACHER if loss is Loss.FORWARD_KL else TopKOf.STUDENT
    reward = _pick(_LOSSES, wanted.reward_loss, Loss.DR_GRPO, f"{field}.reward_loss")
    if reward not in POLICY_GRADIENTS:
        raise InvalidArgument(f"{field}.reward_loss", "is neither GRPO nor DR_GRPO")
    settings = _Settings(
        form=_pick(_FORMS, wanted.form, Form.EXPECTED, f"{field}.form"),
        beta=beta,
        temperature=temperature,
        top_k=wanted.top_k,
        top_k_of=_pick(_TOP_K_OF, wanted.top_k_of, of, f"{field}.top_k_of"),
        rest=_pick(_RESTS, wanted.top_k_rest, Rest.TAIL, f"{field}.top_k_rest"),
        ratio_clip=wanted.ratio_clip,
        token_clip=wanted.token_clip,
        reward_weight=wanted.reward_weight,
        reward_loss=reward,
        student_share=share,
        single_step=_pick(_SINGLE_STEP, wanted.decomposition, True, f"{field}.decomposition"),
        length_normalized=wanted.length_normalized,
    )
    try:
        return Algorithm(loss, **settings)
    except ValueError as error:
        setting, _, reason = str(error).partition(": ")
        setting = {"single_step": "decomposition"}.get(setting, setting)
        raise InvalidArgument(f"{field}.{setting}", reason) from None


class _Settings(TypedDict):
    form: Form
    beta: float
    temperature: float
    top_k: int
    top_k_of: TopKOf
    rest: Rest
    ratio_clip: float
    token_clip: float
    reward_weight: float
    reward_loss: Loss
    student_share: float
    single_step: bool
    length_normalized: bool


def _pick(known: Mapping[int, Value], number: int, default: Value, field: str) -> Value:
    """What an enum's number stands for; the default for UNSPECIFIED."""
    if number == 0:
        return default
    if number not in known:
        raise InvalidArgument(field, f"none has the number {number}")
    return known[number]


def algorithm_message(algorithm: Algorithm) -> pb.Algorithm:
    """An algorithm as a message, nothing that matters left to defaults."""
    message = pb.Algorithm(
        loss=pb.Loss.Value(f"LOSS_{algorithm.loss.name}"),
        form=pb.Form.Value(f"FORM_{algorithm.form.name}"),
        beta=algorithm.beta if algorithm.loss is Loss.JSD else None,
        temperature=algorithm.temperature,
        ratio_clip=algorithm.ratio_clip or None,
        token_clip=algorithm.token_clip or None,
        student_share=algorithm.student_share if algorithm.student_share < 1 else None,
    )
    if algorithm.top_k:
        message.top_k = algorithm.top_k
        message.top_k_of = pb.TopKOf.Value(f"TOP_K_OF_{algorithm.top_k_of.name}")
        message.top_k_rest = pb.TopKRest.Value(f"TOP_K_REST_{algorithm.rest.name}")
    if algorithm.reward_weight:
        message.reward_weight = algorithm.reward_weight
        message.reward_loss = pb.Loss.Value(f"LOSS_{algorithm.reward_loss.name}")
    if algorithm.is_sequential:
        single = algorithm.single_step
        message.decomposition = pb.DECOMPOSITION_SINGLE_STEP if single else pb.DECOMPOSITION_NONE
        message.length_normalized = algorithm.length_normalized
    return message
