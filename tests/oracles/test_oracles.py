"""Our steps are the gradients of the losses that people train with, by their own code."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.oracles

trl = pytest.importorskip("trl")
pytest.importorskip("verl")

from tests.oracles.data import batch  # noqa: E402
from tests.oracles.losses import Oracle, largest_difference, oracles, theirs  # noqa: E402

ALL = oracles()


@pytest.mark.parametrize("oracle", ALL, ids=lambda oracle: oracle.name)
def test_in_float32(oracle: Oracle) -> None:
    assert largest_difference(oracle, batch(), torch.float32) < oracle.limit


@pytest.mark.parametrize(
    "oracle", [o for o in ALL if not o.float32_only], ids=lambda oracle: oracle.name
)
def test_in_float64(oracle: Oracle) -> None:
    assert largest_difference(oracle, batch(), torch.float64) < 1e-9


def test_masked_tokens_have_no_gradient_and_the_others_do() -> None:
    data = batch()
    assert 0 < data.mask.sum() < data.mask.numel()
    for oracle in ALL:
        d = theirs(oracle, data, torch.float64)
        assert not np.abs(d[data.mask.numpy() == 0]).any(), oracle.name
        assert np.abs(d[data.mask.numpy() == 1]).max() > 1e-4, oracle.name
