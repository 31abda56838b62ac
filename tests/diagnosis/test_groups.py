"""Groups of trajectories: what sorting by outcome shows, and what is left beyond controls."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from unmask_server.diagnosis import (
    Algorithm,
    Counts,
    Loss,
    NodePosterior,
    NodeTerms,
    SetTerms,
    entropy,
    measure,
    powered,
    tempered,
)
from unmask_server.diagnosis.resampling import Resamples
from unmask_server.diagnosis.sets import ResampledSet

REVERSE = Algorithm(Loss.REVERSE_KL)
IDS = np.arange(8, dtype=np.int32)
KEYS = [(f"q{q}", f"t{t}") for q in range(12) for t in range(5)]

Teacher = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]


def flat(p: np.ndarray, s: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blind to success: flatter than the student, with noise of its own."""
    t = powered(p, 0.5) * np.exp(0.15 * rng.standard_normal(len(p)))
    return np.asarray(t / t.sum())


def knowing(p: np.ndarray, s: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    t = p * np.exp(1.5 * (s - s.mean()))
    return np.asarray(t / t.sum())


def groups(teacher: Teacher) -> dict[str, tuple[ResampledSet, ResampledSet]]:
    """The teacher's sets and its matched control's, incorrect and correct generations."""
    rng = np.random.default_rng(4)
    sets = {name: (SetTerms(), SetTerms()) for name in ("teacher", "matched")}
    for question in range(30):
        for trajectory in range(12):
            p = np.append(rng.dirichlet(np.ones(8)), 0.0)
            s = np.append(np.where(rng.random(8) < 0.5, 0.03, 0.97), 0.5)
            # The outcome is that of the token that was drawn here: this is what selects.
            correct = int(rng.random() < s[rng.choice(9, p=p)])
            n = np.floor(400 * p)
            found = Counts(n, rng.binomial(n.astype(int), s).astype(float), np.zeros(9, bool))
            drawn = NodePosterior(found, p, seed=question * 100 + trajectory, size=100)
            t = teacher(p, s, rng)
            for name, q in (("teacher", t), ("matched", tempered(p, entropy(t)))):
                measured = measure(drawn, REVERSE, p, q, ids=IDS)
                sets[name][correct].add(
                    NodeTerms(f"q{question}", f"t{trajectory}", measured.alignment.status,
                              measured.alignment.effective_support, measured.draws)
                )  # fmt: skip
    keys = [sets["teacher"][outcome].keys for outcome in (0, 1)]
    resamples = Resamples.of_groups(keys, seed=1)
    return {name: (two[0].on(resamples[0]), two[1].on(resamples[1])) for name, two in sets.items()}


@pytest.mark.slow
def test_a_teacher_that_is_only_flatter_shows_a_gap_and_none_beyond_its_control() -> None:
    found = groups(flat)
    gaps = {name: wrong.contrast.less(right.contrast) for name, (wrong, right) in found.items()}
    naive = gaps["teacher"].difference.mean_cosine
    beyond = gaps["teacher"].less(gaps["matched"]).difference.mean_cosine
    assert naive is not None
    assert beyond is not None
    assert naive.low > 0.02
    assert beyond.low < 0.0 < beyond.high
    # Paired: the noise that they share is gone.
    assert beyond.width < naive.width


@pytest.mark.slow
def test_a_teacher_that_knows_success_is_better_than_its_control_in_both_groups() -> None:
    for wrong_or_right in (0, 1):
        found = groups(knowing)
        less = found["teacher"][wrong_or_right].less(found["matched"][wrong_or_right])
        assert less.mean_cosine is not None
        assert less.mean_cosine.low > 0.1


def test_the_same_questions_come_up_in_all_groups() -> None:
    first, second = Resamples.of_groups([KEYS[::2], KEYS[1::2]], seed=3)
    for question in {question for question, _ in KEYS}:
        counts, places = [], []
        for group in (first, second):
            mine = [i for i, (of, _) in enumerate(group.keys) if of == question]
            counts.append(group.weights[:, mine].sum(1) / len(mine))
            places.append(group.places[:, mine[0]])
        np.testing.assert_array_equal(counts[0], counts[1])
        np.testing.assert_array_equal(places[0], places[1])
        assert counts[0].mean() == pytest.approx(1.0, abs=0.1)


def test_a_group_may_lack_a_question_or_all_of_them() -> None:
    some, none = Resamples.of_groups([KEYS[:3], []], seed=3)
    assert some.weights.sum() > 0
    assert none.weights.shape[1] == 0


def test_one_group_is_a_set() -> None:
    alone = Resamples.of(KEYS, seed=5)
    (grouped,) = Resamples.of_groups([KEYS], seed=5)
    np.testing.assert_array_equal(alone.weights, grouped.weights)
