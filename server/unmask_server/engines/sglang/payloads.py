"""What is sent to `/generate`, and what comes back. Pure: no I/O.

Never sent: `token_ids_logprob` (a request that has it kills the scheduler when it shares a batch
with one that has none, 0.5.20) and `n` (which changes the shape of the answer).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unmask_server.engines.base import EngineError, Sampling
from unmask_server.engines.sglang.client import Json


def sampling_params(
    sampling: Sampling, max_new_tokens: int, stop_ids: Sequence[int], *, banned: Sequence[int] = ()
) -> Json:
    """Every parameter that changes what is sampled, so that a server's defaults change nothing.

    Args:
        sampling: temperature > 0.
        max_new_tokens: >= 0.
        stop_ids: end the generation, beside the model's own end tokens, which always do.
        banned: ids that must not be sampled.

    """
    params: Json = {
        "temperature": float(sampling.temperature),
        "top_p": float(sampling.top_p),
        "top_k": int(sampling.top_k) or -1,
        "min_p": 0.0,
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
        "repetition_penalty": 1.0,
        "min_new_tokens": 0,
        "max_new_tokens": int(max_new_tokens),
        "stop": [],
        "stop_token_ids": sorted(stop_ids),
        "ignore_eos": False,
        "n": 1,
    }
    if banned:
        # SGLang adds it to the logits.
        params["logit_bias"] = {str(token): -1e9 for token in banned}
    return params


def sampling_fields(params: Json) -> Json:
    """A request for rollouts."""
    return {"sampling_params": params, "return_logprob": False, "stream": False}


def scoring_fields(start: int, top: int, *, temperature: float = 1.0, new: int = 0) -> Json:
    """A request for the `top` likeliest ids before every input token from index `start` on.

    Input log-probabilities are of the raw softmax, whatever the temperature; those of the one token
    that `new` = 1 samples are at `temperature`.
    """
    return {
        "sampling_params": sampling_params(Sampling(temperature), new, ()),
        "return_logprob": True,
        "logprob_start_len": start,
        "top_logprobs_num": top,
        "stream": False,
    }


@dataclass(frozen=True, slots=True)
class Generated:
    """What one request for a rollout brought."""

    tokens: tuple[int, ...]
    stopped: bool
    """At an end token (the last of `tokens`); else at the limit."""
    aborted: bool
    """Ended by somebody else: it is no rollout."""
    cached: int
    """Input tokens that the server's prefix cache had."""


def read_generated(answer: Json) -> Generated:
    """Read an answer to `sampling_fields`.

    Raises:
        EngineError: it is not what SGLang answers.

    """
    try:
        meta = answer["meta_info"]
        reason = (meta.get("finish_reason") or {}).get("type")
        tokens = tuple(answer["output_ids"])
    except (KeyError, TypeError, AttributeError):
        raise EngineError(
            f"SGLang gave an answer without output_ids: {str(answer)[:200]}"
        ) from None
    if reason not in ("stop", "length", "abort"):
        raise EngineError(f"SGLang ended a generation for an unknown reason: {reason!r}")
    return Generated(
        tokens=tokens,
        stopped=reason == "stop",
        aborted=reason == "abort",
        cached=int(meta.get("cached_tokens") or 0),
    )


def read_input_top(answer: Json, start: int, wanted: Sequence[int]) -> list[Likeliest]:
    """The likeliest ids before the input tokens at the indices `wanted`, each above `start`.

    Raises:
        EngineError: an entry is missing, null or not finite (a null must never become 0.0).

    """
    entries = _logprobs(answer, "input_top_logprobs")
    result = []
    for index in wanted:
        place = index - start
        entry = entries[place] if 0 < place < len(entries) else None
        result.append(_likeliest(entry, f"input token {index}"))
    return result


def read_input_logprob(answer: Json) -> float:
    """Log-probability of the last input token.

    Raises: as `read_input_top`.
    """
    entries = _logprobs(answer, "input_token_logprobs")
    value = entries[-1][0] if entries and entries[-1] else None
    return _finite(value, "the last input token")


def read_input_own(answer: Json, start: int, index: int, token: int) -> float | None:
    """Log-probability of the input token at `index`; None if the answer is about another one.

    Raises: as `read_input_top`.
    """
    entries = _logprobs(answer, "input_token_logprobs")
    place = index - start
    entry = entries[place] if 0 < place < len(entries) else None
    if not entry or entry[1] != token:
        return None
    return _finite(entry[0], f"input token {index}")


def read_output_top(answer: Json) -> Likeliest:
    """The likeliest ids for the first sampled token, at the request's temperature.

    Raises: as `read_input_top`.
    """
    entries = _logprobs(answer, "output_top_logprobs")
    return _likeliest(entries[0] if entries else None, "the next token")


@dataclass(frozen=True, slots=True)
class Likeliest:
    """The likeliest ids at a position, likeliest first; of equal ones the lower id first."""

    ids: NDArray[np.int32]
    logprobs: NDArray[np.float64]


def _logprobs(answer: Json, key: str) -> list[Any]:
    found = (answer.get("meta_info") or {}).get(key)
    if not isinstance(found, list):
        raise EngineError(f"SGLang's answer lacks {key}")
    return found


def _likeliest(entry: Any, where: str) -> Likeliest:
    if not entry:
        raise EngineError(f"SGLang gave no log-probabilities for {where}")
    try:
        values = np.array([row[0] for row in entry], dtype=np.float64)
        ids = np.array([row[1] for row in entry], dtype=np.int32)
    except (TypeError, IndexError, ValueError):
        raise EngineError(f"SGLang gave a null log-probability for {where}") from None
    if np.isnan(values).any() or (values == np.inf).any():
        raise EngineError(f"SGLang gave NaN or infinite log-probabilities for {where}")
    order = np.lexsort((ids, -values))
    return Likeliest(ids[order], values[order])


def _finite(value: Any, where: str) -> float:
    # Minus infinity is probability zero.
    if not isinstance(value, int | float) or math.isnan(value) or value == math.inf:
        raise EngineError(f"SGLang gave {value!r} as the log-probability of {where}")
    return float(value)
