"""Algorithms as short texts: `reverse_kl`, `jsd:0.5`, `opd`, `minillm:length_normalized`, ..."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from unmask.v1 import diagnosis_pb2 as pb

_PREFIX = "LOSS_"
ALGORITHM_NAMES: dict[str, pb.Loss.ValueType] = {
    name.removeprefix(_PREFIX).lower(): number for name, number in pb.Loss.items() if number
}
"""The names of the losses."""

_LOSS_NAMES = {loss: name for name, loss in ALGORITHM_NAMES.items()}
_ALIASES = {
    "opd": "reverse_kl:sampled",
}
"""Recipes by the names people know."""
_WORDS: dict[str, tuple[str, int | bool]] = {
    "expected": ("form", pb.FORM_EXPECTED),
    "sampled": ("form", pb.FORM_SAMPLED),
    "single_step": ("decomposition", pb.DECOMPOSITION_SINGLE_STEP),
    "no_single_step": ("decomposition", pb.DECOMPOSITION_NONE),
    "length_normalized": ("length_normalized", True),
    "of_teacher": ("top_k_of", pb.TOP_K_OF_TEACHER),
    "of_student": ("top_k_of", pb.TOP_K_OF_STUDENT),
    "tail": ("top_k_rest", pb.TOP_K_REST_TAIL),
    "renormalized": ("top_k_rest", pb.TOP_K_REST_RENORMALIZED),
    "dropped": ("top_k_rest", pb.TOP_K_REST_DROPPED),
}
_NUMBERS: dict[str, tuple[str, Callable[[str], float]]] = {
    "beta": ("beta", float),
    "temperature": ("temperature", float),
    "top_k": ("top_k", int),
    "ratio_clip": ("ratio_clip", float),
    "token_clip": ("token_clip", float),
    "reward": ("reward_weight", float),
    "lambda": ("student_share", float),
}
_REWARDS = {"grpo": pb.LOSS_GRPO, "dr_grpo": pb.LOSS_DR_GRPO}

AlgorithmLike = str | pb.Algorithm
"""A text that `parse_algorithm` understands, or the message itself."""


def parse_algorithm(text: AlgorithmLike) -> pb.Algorithm:
    """The algorithm that a text names.

    A loss (`reverse_kl`, `forward_kl`, `jsd`, `minillm`, `grpo`, `dr_grpo`), then, each after a
    colon and in any order:

    - `expected` or `sampled`; `temperature=0.7`, the temperature inside the loss;
    - for `jsd` its beta, as `jsd:0.5` or `jsd:beta=0.5`;
    - for divergences `top_k=20`, with `of_teacher` or `of_student` and `tail`, `renormalized` or
      `dropped`; `token_clip=0.1`;
    - for `reverse_kl` and `minillm` `ratio_clip=5`;
    - for `minillm` `length_normalized`, `no_single_step`;
    - for all with a teacher `reward=0.5` (with `reward_loss=grpo`) and `lambda=0.5`.

    `opd`, sampled-token on-policy distillation, is `reverse_kl:sampled`. What a setting means is
    said in the contract, at `Algorithm`.

    Raises:
        ValueError: the text names no algorithm; says why.

    """
    if isinstance(text, pb.Algorithm):
        return text
    name, *parts = text.strip().lower().split(":")
    name = name.replace("-", "_")
    if name in _ALIASES:
        name, *first = _ALIASES[name].split(":")
        parts = [*first, *parts]
    if name not in ALGORITHM_NAMES:
        known = ", ".join([*ALGORITHM_NAMES, *_ALIASES])
        raise ValueError(f"algorithm {text!r}: no loss is called {name!r}; there are {known}")
    algorithm = pb.Algorithm(loss=ALGORITHM_NAMES[name])
    for part in parts:
        word = part.replace("-", "_")
        if word in _WORDS:
            setattr(algorithm, *_WORDS[word])
            continue
        key, has_value, value = part.rpartition("=")
        key = key.replace("-", "_")
        if not has_value and name == "jsd":
            key = "beta"
        if key == "reward_loss" and (loss := value.replace("-", "_")) in _REWARDS:
            algorithm.reward_loss = _REWARDS[loss]
            continue
        if key not in _NUMBERS or (key == "beta" and name != "jsd"):
            numbers = [f"{number}=…" for number in _NUMBERS if number != "beta" or name == "jsd"]
            known = ", ".join([*_WORDS, *numbers, "reward_loss=grpo"])
            raise ValueError(f"algorithm {text!r}: {part!r} is none of {known}")
        field, read = _NUMBERS[key]
        try:
            setattr(algorithm, field, read(value))
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
    if algorithm.decomposition == pb.DECOMPOSITION_NONE:
        parts.append("no_single_step")
    if algorithm.length_normalized:
        parts.append("length_normalized")
    if algorithm.HasField("temperature") and algorithm.temperature != 1.0:
        parts.append(f"temperature={algorithm.temperature:g}")
    if algorithm.HasField("top_k"):
        parts.append(f"top_k={algorithm.top_k}")
        usual = pb.TOP_K_OF_TEACHER if algorithm.loss == pb.LOSS_FORWARD_KL else pb.TOP_K_OF_STUDENT
        parts += _words(algorithm, "top_k_of", usual)
        parts += _words(algorithm, "top_k_rest", pb.TOP_K_REST_TAIL)
    for key in ("ratio_clip", "token_clip", "reward", "lambda"):
        field, _ = _NUMBERS[key]
        if algorithm.HasField(field):  # type: ignore[arg-type]
            parts.append(f"{key}={getattr(algorithm, field):g}")
    if algorithm.reward_loss == pb.LOSS_GRPO:
        parts.append("reward_loss=grpo")
    return ":".join(parts)


def _words(algorithm: pb.Algorithm, field: str, usual: int) -> list[str]:
    """The word for a field's value, unless that is absent or usual."""
    number = getattr(algorithm, field)
    if number in (0, usual):
        return []
    return [word for word, setting in _WORDS.items() if setting == (field, number)]
