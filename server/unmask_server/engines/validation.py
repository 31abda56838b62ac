"""Requests are checked here, whole, before anything is computed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from unmask_server.engines.base import (
    BadRequestError,
    ModelInfo,
    SampleRequest,
    Sampling,
    ScoreRequest,
)

_INT64 = np.iinfo(np.int64)


def _is_int(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def check_ids(ids: Sequence[int], vocab_size: int, where: str) -> None:
    """Refuse token ids that the model has no row for.

    Raises:
        BadRequestError: an id is no integer (a bool is none) or not in [0, vocab_size).

    """
    # Most sequences are fine, and this is all the time they take.
    if not ids or (set(map(type, ids)) == {int} and min(ids) >= 0 and max(ids) < vocab_size):
        return
    for index, token in enumerate(ids):
        if not _is_int(token):
            raise BadRequestError(f"{where}[{index}] is {token!r}: token ids are integers")
        if not 0 <= token < vocab_size:
            raise BadRequestError(
                f"{where}[{index}] is {token}: this model has the ids 0 to {vocab_size - 1}; "
                "check that the tokenizer belongs to it"
            )


def check_sampling(sampling: Sampling, where: str = "sampling") -> None:
    """Refuse settings that describe no distribution.

    Raises:
        BadRequestError: naming the setting and its range.

    """
    t, p, k = sampling.temperature, sampling.top_p, sampling.top_k
    if not (isinstance(t, int | float) and not isinstance(t, bool) and 0 < t < math.inf):
        raise BadRequestError(
            f"{where}.temperature is {t!r}: it must be above 0 and finite; greedy decoding (0) is "
            "no distribution, use a small temperature instead"
        )
    if not (isinstance(p, int | float) and not isinstance(p, bool) and 0 < p <= 1):
        raise BadRequestError(f"{where}.top_p is {p!r}: it must be in (0, 1]; 1 keeps everything")
    if not (_is_int(k) and k >= 0):
        raise BadRequestError(f"{where}.top_k is {k!r}: it must be 0 (keep everything) or more")


def check_stop_ids(stop_ids: Iterable[int], vocab_size: int) -> None:
    """Refuse stop ids that can never be sampled.

    Raises:
        BadRequestError: an id is not in [0, vocab_size).

    """
    for token in stop_ids:
        if not (_is_int(token) and 0 <= token < vocab_size):
            raise BadRequestError(
                f"stop_ids holds {token!r}: this model has the ids 0 to {vocab_size - 1}"
            )


def check_sample_requests(requests: Sequence[SampleRequest], info: ModelInfo) -> None:
    """Refuse a batch in which one request is impossible.

    Raises:
        BadRequestError: naming the request, the field and what to do.

    """
    for index, request in enumerate(requests):
        where = f"requests[{index}]"
        check_ids(request.prompt, info.vocab_size, f"{where}.prompt")
        check_ids(request.forced, info.vocab_size, f"{where}.forced")
        if not request.prompt and not request.forced:
            raise BadRequestError(
                f"{where}: prompt and forced are both empty, there is nothing to condition on; "
                "begin with the model's start token"
            )
        new = request.max_new_tokens
        if not (_is_int(new) and new >= 1):
            raise BadRequestError(f"{where}.max_new_tokens is {new!r}: it must be 1 or more")
        if not (_is_int(request.seed) and _INT64.min <= request.seed <= _INT64.max):
            raise BadRequestError(f"{where}.seed is {request.seed!r}: it must fit in int64")
        given = len(request.prompt) + len(request.forced)
        if given + new > info.max_context:
            raise BadRequestError(
                f"{where}: {given} tokens of prompt and forced and max_new_tokens={new} are more "
                f"than the model's context of {info.max_context}; ask for "
                f"{max(0, info.max_context - given)} or fewer"
            )


def check_score_request(request: ScoreRequest, info: ModelInfo) -> None:
    """Refuse an impossible score request.

    Raises:
        BadRequestError: naming the field and what to do.

    """
    check_ids(request.prompt, info.vocab_size, "prompt")
    check_ids(request.continuation, info.vocab_size, "continuation")
    length = len(request.prompt) + len(request.continuation)
    if length > info.max_context:
        raise BadRequestError(
            f"prompt and continuation have {length} tokens, the model's context is "
            f"{info.max_context}; cut the continuation"
        )
    before = -1
    for index, position in enumerate(request.positions):
        if not (_is_int(position) and 0 <= position <= len(request.continuation)):
            raise BadRequestError(
                f"positions[{index}] is {position!r}: it must be in "
                f"[0, {len(request.continuation)}], the length of the continuation"
            )
        if position <= before:
            raise BadRequestError(
                f"positions[{index}] is {position} after {before}: positions must ascend"
            )
        before = position
    if not request.prompt and request.positions and request.positions[0] == 0:
        raise BadRequestError(
            "positions[0] is 0 and prompt is empty: there is nothing to condition on; "
            "begin with the model's start token"
        )
    if not (_is_int(request.top_k) and request.top_k >= 0):
        raise BadRequestError(f"top_k is {request.top_k!r}: it must be 0 or more")
    if not request.views:
        raise BadRequestError("views is empty: name at least one sampling, for example RAW")
    for index, view in enumerate(request.views):
        check_sampling(view, f"views[{index}]")
    if request.also and len(request.also) != len(request.positions):
        raise BadRequestError(
            f"also has {len(request.also)} entries for {len(request.positions)} positions: "
            "give one tuple a position, or none at all"
        )
    for index, ids in enumerate(request.also):
        check_ids(ids, info.vocab_size, f"also[{index}]")
