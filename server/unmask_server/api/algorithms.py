"""Algorithms in requests, with every default filled in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from unmask.v1 import diagnosis_pb2 as pb

from unmask_server.catalog.errors import FailedPrecondition, InvalidArgument
from unmask_server.catalog.types import Teacher
from unmask_server.diagnosis import Algorithm, Form, Loss, Rest, TopKOf
from unmask_server.reasons import Reason

MAX_REWARD_WEIGHT = 1e6
"""A larger one leaves nothing of the teacher's loss, and its square overflows sooner or later."""

_LOSSES: Mapping[int, Loss] = {pb.Loss.Value(f"LOSS_{loss.name}"): loss for loss in Loss}
_FORMS: Mapping[int, Form] = {pb.Form.Value(f"FORM_{form.name}"): form for form in Form}
_RESTS: Mapping[int, Rest] = {pb.TopKRest.Value(f"TOP_K_REST_{rest.name}"): rest for rest in Rest}
_TOP_K_OF: Mapping[int, TopKOf] = {pb.TopKOf.Value(f"TOP_K_OF_{of.name}"): of for of in TopKOf}
_SINGLE_STEP: Mapping[int, bool] = {
    pb.DECOMPOSITION_SINGLE_STEP: True,
    pb.DECOMPOSITION_NONE: False,
}


def parse_algorithms(wanted: Sequence[pb.Algorithm], field: str) -> list[Algorithm]:
    """The algorithms asked for; expected reverse KL if none was."""
    if not wanted:
        return [Algorithm(Loss.REVERSE_KL)]
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
                Reason.STORED_TEACHER_LIMITED,
                f"teachers[{k}] is a stored teacher, or a control of one, "
                f"known at temperature 1 only: what its logits over {algorithm.temperature:g} give "
                "cannot be told from its likeliest tokens",
                field=f"{field}.temperature",
                teacher=teacher.id,
            )
        if teacher.is_stored and algorithm.token_clip > 0.0:
            raise FailedPrecondition(
                Reason.STORED_TEACHER_LIMITED,
                f"teachers[{k}] is a stored teacher, or a control of one: the "
                "terms of tokens that are not listed are not known one by one",
                field=f"{field}.token_clip",
                teacher=teacher.id,
            )


def _parse(wanted: pb.Algorithm, field: str) -> Algorithm:
    """Of a request that keeps to the contract: UNSPECIFIED is in none of the tables.

    Raises:
        InvalidArgument: rewards with a weight above `MAX_REWARD_WEIGHT`.

    """
    if wanted.reward_weight > MAX_REWARD_WEIGHT:
        raise InvalidArgument(
            f"{field}.reward_weight", f"{wanted.reward_weight:g} is above {MAX_REWARD_WEIGHT:g}"
        )
    loss = _LOSSES[wanted.loss]
    of = TopKOf.TEACHER if loss is Loss.FORWARD_KL else TopKOf.STUDENT
    return Algorithm(
        loss,
        form=_FORMS.get(wanted.form, Form.EXPECTED),
        beta=wanted.beta if wanted.HasField("beta") else 0.5,
        temperature=wanted.temperature if wanted.HasField("temperature") else 1.0,
        top_k=wanted.top_k,
        top_k_of=_TOP_K_OF.get(wanted.top_k_of, of),
        rest=_RESTS.get(wanted.top_k_rest, Rest.TAIL),
        ratio_clip=wanted.ratio_clip,
        token_clip=wanted.token_clip,
        reward_weight=wanted.reward_weight,
        reward_loss=_LOSSES.get(wanted.reward_loss, Loss.DR_GRPO),
        student_share=wanted.student_share if wanted.HasField("student_share") else 1.0,
        single_step=_SINGLE_STEP.get(wanted.decomposition, True),
        length_normalized=wanted.length_normalized,
    )


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
