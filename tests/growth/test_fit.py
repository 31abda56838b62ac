"""Whether generations can be a policy's, on policies whose probabilities are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from unmask_server.engines.base import ZERO_LOGPROB, PositionScores
from unmask_server.growth.fit import Fit, Scorable, compare

FloatArray = NDArray[np.float64]

VOCAB = 200


def policy(rng: np.random.Generator, positions: int, width: float = 2.0) -> FloatArray:
    """Log-probabilities of a policy by position, shape (positions, VOCAB)."""
    logits = rng.normal(0.0, width, (positions, VOCAB))
    return np.asarray(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))


def drawn(rng: np.random.Generator, logprobs: FloatArray) -> tuple[int, ...]:
    """A token at each position."""
    totals = np.cumsum(np.exp(logprobs), axis=1)
    points = rng.random(len(totals)) * totals[:, -1]
    return tuple((totals < points[:, None]).sum(axis=1).tolist())


def scored(logprobs: FloatArray, tokens: tuple[int, ...], top: int) -> list[PositionScores]:
    """What an engine answers: the likeliest, and the token; three views that are one."""
    found = []
    for row, token in zip(logprobs, tokens, strict=True):
        likeliest = np.argsort(-row, kind="stable")[:top]
        ids = likeliest if token in likeliest else np.append(likeliest, token)
        found.append(
            PositionScores(ids.astype(np.int32), np.tile(row[ids], (3, 1)).astype(np.float32))
        )
    return found


def fit(
    model: FloatArray,
    dump: list[tuple[int, ...]],
    *,
    top: int = 64,
    told: list[tuple[float, ...]] | None = None,
) -> Fit:
    given = [Scorable((1,), tokens, told[i] if told else ()) for i, tokens in enumerate(dump)]
    scores = [scored(model[: len(tokens)], tokens, top) for tokens in dump]
    return compare(given, scores, top=top, vocab_size=VOCAB)


def by_hand(model: FloatArray, dump: list[tuple[int, ...]], top: int) -> tuple[float, float]:
    """Surprise and its error, from the whole vocabulary, token by token."""
    terms, variances = [], []
    for tokens in dump:
        for row, token in zip(model, tokens, strict=False):
            capped = np.maximum(row, np.sort(row)[-top])
            p = np.exp(row)
            mean = float((p * capped).sum())
            terms.append(float(capped[token]) - mean)
            variances.append(float((p * (capped - mean) ** 2).sum()))
    return sum(terms) / len(terms), math.sqrt(sum(variances)) / len(terms)


@pytest.mark.parametrize("top", [1, 8, 64, VOCAB])
def test_the_likeliest_ids_are_enough(top: int) -> None:
    rng = np.random.default_rng(0)
    model = policy(rng, 12)
    dump = [drawn(rng, model[: rng.integers(1, 13)]) for _ in range(20)]
    found = fit(model, dump, top=top)
    surprise, error = by_hand(model, dump, top)
    assert found.surprise == pytest.approx(surprise, abs=1e-5)
    assert found.surprise_error == pytest.approx(error, abs=1e-5)
    assert (found.generations, found.tokens) == (20, sum(map(len, dump)))


def test_own_samples_are_no_surprise_and_the_error_is_what_it_says() -> None:
    rng = np.random.default_rng(1)
    model = policy(rng, 30)
    scores = []
    for _ in range(100):
        # Generations end where they like, by what they drew: that is no bias.
        dump = []
        for _ in range(8):
            tokens = drawn(rng, model)
            ends = next((i for i, token in enumerate(tokens) if token % 10 == 0), len(tokens) - 1)
            dump.append(tokens[: ends + 1])
        found = fit(model, dump)
        assert found.problem(0.05) is None
        scores.append(found.surprise / found.surprise_error)
    assert abs(np.mean(scores)) < 4 / math.sqrt(100)
    assert np.std(scores) == pytest.approx(1.0, abs=0.25)


def test_another_models_samples_are_told() -> None:
    rng = np.random.default_rng(2)
    model = policy(rng, 30)
    found = fit(model, [drawn(rng, policy(rng, 30)) for _ in range(64)])
    assert "less likely" in str(found.problem(0.05))


def test_a_checkpoint_nearby_is_told_by_its_log_probabilities_alone() -> None:
    rng = np.random.default_rng(2)
    model = policy(rng, 30)
    other = model + rng.normal(0.0, 0.2, model.shape)
    other -= np.log(np.exp(other).sum(axis=1, keepdims=True))
    dump = [drawn(rng, other) for _ in range(64)]
    # Tokens on their own differ from the model's in no direction that is known.
    assert fit(model, dump).problem(0.05) is None
    told = [tuple(map(float, other[range(30), tokens])) for tokens in dump]
    found = fit(model, dump, told=told)
    assert found.distance == pytest.approx(0.2 * math.sqrt(2 / math.pi), rel=0.2)
    assert "log-probabilities" in str(found.problem(0.05))


@pytest.mark.parametrize(("temperature", "word"), [(0.8, "likelier"), (1.25, "less likely")])
def test_another_temperature_is_told(temperature: float, word: str) -> None:
    rng = np.random.default_rng(3)
    model = policy(rng, 30)
    other = model / temperature
    other -= np.log(np.exp(other).sum(axis=1, keepdims=True))
    assert word in str(fit(model, [drawn(rng, other) for _ in range(64)]).problem(0.05))


def test_few_tokens_prove_nothing() -> None:
    rng = np.random.default_rng(4)
    model = policy(rng, 2)
    found = fit(model, [drawn(rng, model)])
    assert found.surprise_error > 0.2
    assert found.problem(0.05) is None


def test_the_nearest_of_the_three_views_counts() -> None:
    rng = np.random.default_rng(5)
    model = policy(rng, 10)
    tokens = drawn(rng, model)
    views = [(1.0, 0.0), (0.7, 0.3), (1.3, -0.4)]
    scores = scored(model, tokens, 64)
    for at in scores:
        for i, (scale, shift) in enumerate(views):
            at.logprobs[i] = at.logprobs[i] * scale + shift
    for i in range(3):
        told = tuple(
            float(at.logprobs[i, np.flatnonzero(at.ids == token)[0]])
            for at, token in zip(scores, tokens, strict=True)
        )
        found = compare([Scorable((1,), tokens, told)], [scores], top=64, vocab_size=VOCAB)
        assert found.distance == pytest.approx(0.0, abs=1e-6)
        worse = tuple(value - 0.1 for value in told)
        found = compare([Scorable((1,), tokens, worse)], [scores], top=64, vocab_size=VOCAB)
        assert found.distance == pytest.approx(0.1, abs=1e-5)
        assert "log-probabilities" in str(found.problem(0.05))
        assert "log-probabilities" not in str(found.problem(0.2))


def test_tokens_that_a_cut_leaves_out_are_told() -> None:
    rng = np.random.default_rng(6)
    model = policy(rng, 20)
    kept = model >= np.sort(model, axis=1)[:, [-5]]
    cut = np.where(kept, model, -np.inf)
    cut -= np.log(np.exp(cut).sum(axis=1, keepdims=True))
    finite = np.where(kept, cut, ZERO_LOGPROB)
    inside = [drawn(rng, finite) for _ in range(16)]
    found = fit(finite, inside)
    assert (found.impossible, found.problem(0.05)) == (0, None)
    found = fit(finite, [drawn(rng, model) for _ in range(16)])
    assert found.impossible > 10
    assert "probability 0" in str(found.problem(0.05))
