"""What comes back from SGLang is read strictly: what is not there is an error, never a zero."""

from __future__ import annotations

from typing import Any

import pytest
from unmask_server.engines.base import EngineError, Sampling
from unmask_server.engines.sglang.payloads import (
    read_generated,
    read_input_logprob,
    read_input_own,
    read_input_top,
    read_output_top,
    sampling_params,
)

NAN, INFINITY = float("nan"), float("inf")
# As SGLang 0.5.20 answers to logprob_start_len=4 and top_logprobs_num=2: the entry at the start is
# null, since its logits belong to the position before.
ANSWER: dict[str, Any] = {
    "output_ids": [7],
    "meta_info": {
        "finish_reason": {"type": "length", "length": 1},
        "cached_tokens": 4,
        "input_token_logprobs": [[None, 3, None], [-1.5, 9, None], [-0.5, 8, None]],
        "input_top_logprobs": [
            None,
            [[-0.25, 5, None], [-1.5, 9, None]],
            [[-0.5, 8, None], [-0.5, 2, None]],
        ],
        "output_top_logprobs": [[[-0.1, 7, None]]],
    },
}


def answer(**meta: Any) -> dict[str, Any]:
    return ANSWER | {"meta_info": ANSWER["meta_info"] | meta}


def test_entries_are_found_by_their_index_in_the_input() -> None:
    first, second = read_input_top(ANSWER, 4, [5, 6])
    assert first.ids.tolist() == [5, 9]
    assert first.logprobs.tolist() == [-0.25, -1.5]
    # Of equally likely ids the lower one comes first.
    assert second.ids.tolist() == [2, 8]
    assert read_input_logprob(ANSWER) == -0.5
    assert read_output_top(ANSWER).ids.tolist() == [7]


def test_what_the_sequence_itself_goes_on_with() -> None:
    assert read_input_own(ANSWER, 4, 5, 9) == -1.5
    # Another token than was asked about: the last one stands for none.
    assert read_input_own(ANSWER, 4, 5, 3) is None
    assert read_input_own(ANSWER, 4, 4, 3) is None
    with pytest.raises(EngineError):
        read_input_own(answer(input_token_logprobs=[[None, 3], [NAN, 9]]), 4, 5, 9)


@pytest.mark.parametrize("index", [3, 4, 7])
def test_a_null_or_missing_entry_is_an_error(index: int) -> None:
    with pytest.raises(EngineError, match=f"no log-probabilities for input token {index}"):
        read_input_top(ANSWER, 4, [index])


@pytest.mark.parametrize(
    "entry", [None, [], [[None, 5, None]], [[NAN, 5, None]], [[INFINITY, 5, None]], [["x", 5]]]
)
def test_what_is_no_log_probability_is_an_error(entry: Any) -> None:
    with pytest.raises(EngineError):
        read_input_top(answer(input_top_logprobs=[None, entry]), 4, [5])
    with pytest.raises(EngineError):
        read_output_top(answer(output_top_logprobs=[entry]))
    with pytest.raises(EngineError):
        read_input_logprob(answer(input_token_logprobs=[entry and entry[0]]))


@pytest.mark.parametrize(
    "key", ["input_token_logprobs", "input_top_logprobs", "output_top_logprobs"]
)
def test_an_answer_without_what_was_asked_for_is_an_error(key: str) -> None:
    without = answer()
    del without["meta_info"][key]
    read = {
        "input_token_logprobs": read_input_logprob,
        "input_top_logprobs": lambda found: read_input_top(found, 4, [5]),
        "output_top_logprobs": read_output_top,
    }[key]
    with pytest.raises(EngineError, match=key):
        read(without)


def test_how_a_rollout_ended_is_what_the_server_says() -> None:
    for kind, stopped, aborted in (
        ("stop", True, False),
        ("length", False, False),
        ("abort", False, True),
    ):
        got = read_generated(answer(finish_reason={"type": kind}))
        assert (got.stopped, got.aborted) == (stopped, aborted)
    for reason in (None, {}, {"type": "tired"}):
        with pytest.raises(EngineError, match="unknown reason"):
            read_generated(answer(finish_reason=reason))
    with pytest.raises(EngineError, match="without output_ids"):
        read_generated({"text": "?"})


def test_no_cut_is_said_in_sglangs_words() -> None:
    params = sampling_params(Sampling(0.5), 3, [9, 2], banned=[70])
    assert params["top_k"] == -1
    assert params["top_p"] == 1.0
    assert params["stop_token_ids"] == [2, 9]
    assert params["logit_bias"] == {"70": -1e9}
    assert "logit_bias" not in sampling_params(Sampling(), 3, [])
