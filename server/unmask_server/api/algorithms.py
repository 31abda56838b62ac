"""Algorithms in requests, with every default filled in."""

from __future__ import annotations

from collections.abc import Sequence

from unmask.v1 import diagnosis_pb2 as pb

from unmask_server.catalog.errors import InvalidArgument
from unmask_server.diagnosis import Algorithm, Form, Loss

MAX_ALGORITHMS = 32
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 100.0

_LOSSES = {
    pb.LOSS_FORWARD_KL: Loss.FORWARD_KL,
    pb.LOSS_REVERSE_KL: Loss.REVERSE_KL,
    pb.LOSS_JSD: Loss.JSD,
    pb.LOSS_GRPO: Loss.GRPO,
    pb.LOSS_DR_GRPO: Loss.DR_GRPO,
}
_FORMS = {
    pb.FORM_UNSPECIFIED: Form.EXPECTED,
    pb.FORM_EXPECTED: Form.EXPECTED,
    pb.FORM_SAMPLED: Form.SAMPLED,
}
_LOSS_NUMBERS = {loss: number for number, loss in _LOSSES.items()}
_FORM_NUMBERS = {Form.EXPECTED: pb.FORM_EXPECTED, Form.SAMPLED: pb.FORM_SAMPLED}


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


def _parse(wanted: pb.Algorithm, field: str) -> Algorithm:
    loss = _LOSSES.get(wanted.loss)
    if loss is None:
        raise InvalidArgument(f"{field}.loss", "say which loss")
    form = _FORMS.get(wanted.form)
    if form is None:
        raise InvalidArgument(f"{field}.form", f"no form has the number {wanted.form}")
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
    return Algorithm(loss, form, beta=beta, temperature=temperature)


def algorithm_message(algorithm: Algorithm) -> pb.Algorithm:
    """An algorithm as a message, nothing left to defaults."""
    return pb.Algorithm(
        loss=_LOSS_NUMBERS[algorithm.loss],
        form=_FORM_NUMBERS[algorithm.form],
        beta=algorithm.beta if algorithm.loss is Loss.JSD else None,
        temperature=algorithm.temperature,
    )
