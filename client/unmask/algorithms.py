"""Algorithms as short texts: `reverse_kl`, `jsd:0.5`, `opd`, `grpo:sampled`, ..."""

from __future__ import annotations

from collections.abc import Iterable

from unmask.v1 import diagnosis_pb2 as pb

ALGORITHM_NAMES: dict[str, pb.Loss.ValueType] = {
    "reverse_kl": pb.LOSS_REVERSE_KL,
    "forward_kl": pb.LOSS_FORWARD_KL,
    "jsd": pb.LOSS_JSD,
    "grpo": pb.LOSS_GRPO,
    "dr_grpo": pb.LOSS_DR_GRPO,
}
"""The names of the losses."""

_LOSS_NAMES = {loss: name for name, loss in ALGORITHM_NAMES.items()}
_FORMS = {"expected": pb.FORM_EXPECTED, "sampled": pb.FORM_SAMPLED}
_OPD = "opd"

AlgorithmLike = str | pb.Algorithm
"""A text that `parse_algorithm` understands, or the message itself."""


def parse_algorithm(text: AlgorithmLike) -> pb.Algorithm:
    """The algorithm that a text names.

    A loss (`reverse_kl`, `forward_kl`, `jsd`, `grpo`, `dr_grpo`), then, each after a colon and in
    any order: `expected` or `sampled`; for `jsd` its beta, as `jsd:0.5` or `jsd:beta=0.5`;
    `temperature=0.7`, the temperature inside the loss. `opd`, sampled-token on-policy distillation,
    is `reverse_kl:sampled`.

    Raises:
        ValueError: the text names no algorithm; says why.

    """
    if isinstance(text, pb.Algorithm):
        return text
    name, *parts = text.strip().lower().replace("-", "_").split(":")
    if name == _OPD:
        name, parts = "reverse_kl", ["sampled", *parts]
    if name not in ALGORITHM_NAMES:
        known = ", ".join([*ALGORITHM_NAMES, _OPD])
        raise ValueError(f"algorithm {text!r}: no loss is called {name!r}; there are {known}")
    algorithm = pb.Algorithm(loss=ALGORITHM_NAMES[name])
    for part in parts:
        if part in _FORMS:
            algorithm.form = _FORMS[part]
            continue
        key, has_value, value = part.rpartition("=")
        if not has_value and name == "jsd":
            key = "beta"
        if key not in ("beta", "temperature"):
            raise ValueError(
                f"algorithm {text!r}: {part!r} is not expected, sampled or temperature=…"
                + (" or beta=…" if name == "jsd" else "")
            )
        try:
            setattr(algorithm, key, float(value))
        except ValueError:
            raise ValueError(f"algorithm {text!r}: {value!r} is not a number") from None
    return algorithm


def parse_algorithms(
    algorithms: AlgorithmLike | Iterable[AlgorithmLike],
) -> list[pb.Algorithm]:
    """`parse_algorithm` for each; a single one is a list of one, a text may hold several."""
    if isinstance(algorithms, pb.Algorithm):
        return [algorithms]
    if isinstance(algorithms, str):
        algorithms = algorithms.split(",")
    return [parse_algorithm(algorithm) for algorithm in algorithms]


def format_algorithm(algorithm: pb.Algorithm) -> str:
    """The shortest text that `parse_algorithm` reads as `algorithm`; defaults are left out."""
    parts = [_LOSS_NAMES.get(algorithm.loss, f"loss {algorithm.loss}")]
    if algorithm.loss == pb.LOSS_JSD and algorithm.HasField("beta"):
        parts.append(f"{algorithm.beta:g}")
    if algorithm.form == pb.FORM_SAMPLED:
        parts.append("sampled")
    if algorithm.HasField("temperature") and algorithm.temperature != 1.0:
        parts.append(f"temperature={algorithm.temperature:g}")
    return ":".join(parts)
