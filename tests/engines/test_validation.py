"""What can never be done is refused before anything is computed, and says where and why."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from unmask_server.engines.base import (
    RAW,
    BadRequestError,
    EngineError,
    SampleRequest,
    Sampling,
    ScoreRequest,
)
from unmask_server.engines.transformers import TransformersEngine

from tests.engines.helpers import STOP, collect

GOOD = SampleRequest((3, 4), (5,), 4, 0)
SCORE = ScoreRequest((3, 4), (5, 6), (0, 2), 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": (3, -1)}, r"requests\[1\]\.prompt\[1\] is -1"),
        ({"prompt": (60,)}, r"requests\[1\]\.prompt\[0\] is 60.*0 to 59"),
        ({"prompt": (3, 2**31)}, r"prompt\[1\] is 2147483648"),
        ({"prompt": (3, True)}, r"prompt\[1\] is True: token ids are integers"),
        ({"prompt": (3, 1.0)}, r"prompt\[1\] is 1\.0"),
        ({"forced": (5, 60)}, r"requests\[1\]\.forced\[1\] is 60"),
        ({"prompt": (), "forced": ()}, "nothing to condition on"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0: it must be 1 or more"),
        ({"max_new_tokens": True}, "max_new_tokens is True"),
        ({"max_new_tokens": 510}, "context of 512; ask for 509 or fewer"),
        ({"seed": 2**63}, "seed is 9223372036854775808: it must fit in int64"),
        ({"seed": 1.5}, r"seed is 1\.5"),
    ],
)
async def test_impossible_sample_requests(change, message, open_engine):
    engine = open_engine()
    with pytest.raises(BadRequestError, match=message):
        await collect(engine, [GOOD, replace(GOOD, **change), GOOD])
    assert engine.stats.forward_steps == engine.stats.prefill_passes == 0


async def test_the_edges_are_possible(open_engine):
    engine = open_engine()
    requests = [
        replace(GOOD, prompt=(59, 0, np.int64(3))),
        replace(GOOD, prompt=()),
        replace(GOOD, forced=()),
        replace(GOOD, max_new_tokens=509),
        replace(GOOD, seed=2**63 - 1),
        replace(GOOD, seed=-(2**63)),
    ]
    assert len(await collect(engine, requests, stop_ids=frozenset(range(60)))) == 6


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        (Sampling(0.0), "temperature is 0.0.*greedy"),
        (Sampling(-1.0), "temperature is -1.0"),
        (Sampling(float("nan")), "temperature is nan"),
        (Sampling(float("inf")), "temperature is inf"),
        (Sampling(1.0, 0.0), r"top_p is 0\.0: it must be in \(0, 1\]"),
        (Sampling(1.0, 1.5), r"top_p is 1\.5"),
        (Sampling(1.0, float("nan")), "top_p is nan"),
        (Sampling(1.0, 1.0, -1), "top_k is -1"),
    ],
)
async def test_settings_that_are_no_distribution(sampling, message, open_engine):
    engine = open_engine()
    with pytest.raises(BadRequestError, match=f"sampling.{message}"):
        await collect(engine, [GOOD], sampling)
    with pytest.raises(BadRequestError, match=rf"views\[1\].{message}"):
        await engine.score(replace(SCORE, views=(RAW, sampling)))


@pytest.mark.parametrize("stop", [-1, 60, True])
async def test_stop_ids_that_cannot_be_sampled(stop, open_engine):
    with pytest.raises(BadRequestError, match="stop_ids holds"):
        await collect(open_engine(), [GOOD], RAW, frozenset({stop}) | STOP)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": (60,)}, r"prompt\[0\] is 60"),
        ({"continuation": (5, -2)}, r"continuation\[1\] is -2"),
        ({"continuation": (5,) * 511}, "513 tokens, the model's context is 512"),
        ({"positions": (0, 3)}, r"positions\[1\] is 3: it must be in \[0, 2\]"),
        ({"positions": (-1,)}, r"positions\[0\] is -1"),
        ({"positions": (1, 1)}, r"positions\[1\] is 1 after 1: positions must ascend"),
        ({"positions": (2, 0)}, "must ascend"),
        ({"prompt": ()}, "nothing to condition on"),
        ({"top_k": -1}, "top_k is -1"),
        ({"views": ()}, "views is empty"),
        ({"also": ((1,),)}, "also has 1 entries for 2 positions"),
        ({"also": ((1,), (60,))}, r"also\[1\]\[0\] is 60"),
    ],
)
async def test_impossible_score_requests(change, message, open_engine):
    engine = open_engine()
    with pytest.raises(BadRequestError, match=message):
        await engine.score(replace(SCORE, **change))
    assert engine.stats.prefill_passes == 0


async def test_a_model_that_is_not_there(tmp_path: Path):
    with pytest.raises(EngineError, match="cannot be loaded"):
        await TransformersEngine.open(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"max_batch": 0}, ValueError),
        ({"threads": 0}, ValueError),
        ({"max_cache_tokens": 0}, ValueError),
        ({"dtype": "int3"}, EngineError),
        ({"vocab_size": 61}, EngineError),
        ({"vocab_size": 0}, EngineError),
    ],
)
def test_impossible_options(options, error, open_engine):
    with pytest.raises(error):
        open_engine(**options)
