"""What a teacher may know of success."""

from __future__ import annotations

import hashlib
import itertools
import math

import numpy as np
import pytest
from unmask_server.diagnosis import (
    Algorithm,
    Counts,
    HierarchicalPosterior,
    JeffreysPosterior,
    Loss,
    NodePosterior,
    align,
    descent,
    measure,
)
from unmask_server.diagnosis import prior as grid
from unmask_server.diagnosis.posterior import DRAWS
from unmask_server.diagnosis.selection import shares_of_best
from unmask_server.diagnosis.tilt import SHARE, TILTS, Opinion

from bench.coverage_held import QUANTITIES, held
from bench.coverage_nodes import policy, random_node, rolled_out
from tests.diagnosis.making import counts

REVERSE = Algorithm(Loss.REVERSE_KL)
P = np.array([0.4, 0.3, 0.2, 0.1, 0.0])
T = np.array([0.1, 0.3, 0.2, 0.4, 0.0])
AGAINST = np.divide(P * P, T, out=np.zeros(5), where=T > 0.0)
AGAINST /= AGAINST.sum()
IDS = np.arange(4, dtype=np.int32)
NONE = Counts.empty(5)


class Unopinionated(HierarchicalPosterior):
    """The same without an opinion of teachers."""

    def draws_and_tilts(
        self, counts: Counts, p: np.ndarray, *, size: int = DRAWS, seed: int
    ) -> tuple[np.ndarray, None]:
        """The draws alone."""
        return super().draws_and_tilts(counts, p, size=size, seed=seed)[0], None


def changed(drawn: NodePosterior, t: np.ndarray) -> np.ndarray:
    """Which draws are others for a teacher."""
    found: np.ndarray = np.any(drawn.believed_of(P, t).success != drawn.success, axis=1)
    return found


def test_a_token_leans_as_far_as_the_teacher_prefers_it() -> None:
    opinion = Opinion.of(P, T)
    assert opinion is not None
    lean = opinion.lean
    assert lean[0] < lean[1] <= lean[2] < lean[3]
    np.testing.assert_allclose(opinion.weight, (P + T) / 2)
    ratio = np.log(T[:4] / P[:4])
    mean = opinion.weight[:4] @ ratio
    deviation = math.sqrt(opinion.weight[:4] @ (ratio - mean) ** 2)
    np.testing.assert_array_equal(lean[:4], np.rint(2.0 * (ratio - mean) / deviation))
    assert lean[4] == 0


def test_a_teacher_that_never_takes_a_token_leans_finitely() -> None:
    opinion = Opinion.of(P, np.array([0.0, 0.5, 0.3, 0.2, 0.0]))
    assert opinion is not None
    assert -5 <= opinion.lean.min() < 0 < opinion.lean.max() <= 5


@pytest.mark.parametrize("t", [P, P * (1.0 + 1e-5 * np.array([1, -1, 1, -1, 0]))])
def test_who_agrees_with_the_student_has_no_opinion(t: np.ndarray) -> None:
    drawn = NodePosterior(NONE, P, seed=1)
    assert Opinion.of(P, t) is None
    assert drawn.believed_of(P, t) is drawn.believed
    assert drawn.believed_of(P, None) is drawn.believed


def reference(
    won: list[int], lost: list[int], lean: list[int], height: list[int]
) -> tuple[float, np.ndarray]:
    """Probability of a tilt and each token's mean success, by a plain sum over the whole prior."""
    tilted, total, means = 0.0, 0.0, np.zeros(len(won))
    slopes = zip(grid.SLOPES.tolist(), [0.1, 0.3, 3.0, 1.5, 0.4], strict=True)
    strengths = zip(grid.STRENGTHS.tolist(), [1.6, 1.5, 1.1, 0.8, 0.6, 0.5, 0.4], strict=True)
    shares = [(0.0, 2.0), (0.1, 1.0), (0.3, 0.5)]
    tilts = [(0, 1.0 - SHARE), *((tilt, SHARE / len(TILTS)) for tilt in TILTS.tolist())]

    def chance_of(r: int, f: int, a: float, b: float) -> float:
        """Of an outcome after which Beta(a, b) is Beta(a + r, b + f)."""
        after = math.lgamma(a + r) + math.lgamma(b + f) - math.lgamma(a + b + r + f)
        return math.exp(after - math.lgamma(a) - math.lgamma(b) + math.lgamma(a + b))

    for (tilt, v), (slope, w), (kappa, x), (odd, y), centre in itertools.product(
        tilts, list(slopes), list(strengths), shares, range(29)
    ):
        middle = 1.0 / (1.0 + math.exp(7.0 - 0.5 * centre))
        weight = v * w * x * y * math.sqrt(middle * (1.0 - middle))
        expected = []
        for r, f, step, nats in zip(won, lost, lean, height, strict=True):
            at = min(max(centre + slope * nats + tilt * step, 0), 28)
            mu = 1.0 / (1.0 + math.exp(7.0 - 0.5 * at))
            a, b = mu * kappa, (1.0 - mu) * kappa
            alike = (1.0 - odd) * chance_of(r, f, a, b)
            free = 0.4 * odd * chance_of(r, f, 0.5, 0.5)
            fails, succeeds = 0.4 * odd * (r == 0), 0.2 * odd * (f == 0)
            chance = alike + free + fails + succeeds
            n = r + f
            mean = alike * (a + r) / (kappa + n) + free * (0.5 + r) / (1.0 + n) + succeeds
            weight *= chance
            expected.append(mean / chance)
        total += weight
        tilted += weight * (tilt != 0)
        means += weight * np.array(expected)
    return tilted / total, means / total


@pytest.mark.parametrize(
    ("won", "lost"), [([0, 9, 4, 0], [20, 5, 2, 0]), ([12, 5, 0, 0], [3, 5, 6, 0])]
)
def test_draws_are_of_the_whole_posterior(won: list[int], lost: list[int]) -> None:
    found = counts([*np.add(won, lost), 0], [*won, 0])
    drawn = NodePosterior(found, P, seed=1, size=40_000)
    opinion = Opinion.of(P, T)
    assert opinion is not None
    lean, height = opinion.lean[:4].tolist(), grid.heights(P)[:4].tolist()
    tilted, means = reference(won, lost, lean, height)
    assert changed(drawn, T).mean() == pytest.approx(tilted, abs=1e-3)
    mean = drawn.believed_of(P, T).success[:, :4].mean(axis=0)
    np.testing.assert_allclose(mean, means, atol=0.006)
    # Without an opinion it would be another number.
    assert np.abs(drawn.success[:, :4].mean(axis=0) - means).max() > 0.012


def test_nothing_is_promised_before_rollouts() -> None:
    drawn = NodePosterior(NONE, P, seed=1, size=20_000)
    d = descent(REVERSE, P, T)
    gain, blind = drawn.believed_of(P, T).gradient @ d, drawn.gradient @ d
    assert changed(drawn, T).mean() == pytest.approx(SHARE, abs=1e-4)
    assert np.mean(gain > 0) == pytest.approx(np.mean(blind > 0), abs=0.01)
    assert gain.mean() == pytest.approx(blind.mean(), abs=0.02 * gain.std())
    assert gain.std() > 1.05 * blind.std()


def test_rollouts_tell_how_much_a_teacher_knows() -> None:
    p = np.append(np.full(24, 1 / 24), 0.0)
    lift = np.where(np.arange(25) % 2, 2.0, 0.5)
    t = p * lift / (p @ lift)
    n = np.append(np.full(20, 6.0), np.zeros(5))

    def unseen(lifted: float, other: float) -> tuple[float, float]:
        """How much better unseen tokens that it lifts are thought to be, and without an opinion."""
        rewards = np.round(n * np.where(np.arange(25) % 2, lifted, other))
        drawn = NodePosterior(counts(n, rewards), p, seed=1, size=4000)
        informed, blind = (
            s[:, 20:24].mean(axis=0) for s in (drawn.believed_of(p, t).success, drawn.success)
        )
        return informed[1::2].mean() - informed[::2].mean(), blind[1::2].mean() - blind[::2].mean()

    right, blind = unseen(5 / 6, 1 / 6)
    assert right > 0.3
    assert abs(blind) < 0.03
    wrong, _ = unseen(1 / 6, 5 / 6)
    assert wrong < -0.3
    none, _ = unseen(0.5, 0.5)
    assert abs(none) < 0.03


def test_the_same_inputs_give_the_same_bytes_whoever_else_is_asked_about() -> None:
    found = counts([10, 3, 0, 1, 0], [4, 2, 0, 1, 0])
    alone = NodePosterior(found, P, seed=5)
    among = NodePosterior(found, P, seed=5)
    before = among.success.tobytes()
    among.believed_of(P, AGAINST)
    once, again = (one.believed_of(P, T).success for one in (alone, among))
    assert once.tobytes() == again.tobytes()
    assert among.believed_of(P, T) is among.believed_of(P, T)
    assert among.success.tobytes() == before
    digest = hashlib.sha256(np.round(once[:8], 6).tobytes()).hexdigest()
    assert digest[:16] == "576f8e77104f307a"


def test_what_is_not_about_a_teacher_does_not_change() -> None:
    found = counts([40, 30, 10, 2, 0], [30, 9, 4, 2, 0])
    ours, plain = (
        NodePosterior(found, P, seed=1, model=model)
        for model in (HierarchicalPosterior(), Unopinionated())
    )
    opinionated, blind = (align(one, REVERSE, P, T, ids=IDS) for one in (ours, plain))
    assert opinionated.gain != blind.gain
    assert ours.success.tobytes() == plain.success.tobytes()
    assert ours.unshrunk_gradient.tobytes() == plain.unshrunk_gradient.tobytes()
    assert (opinionated.status, opinionated.ideal_norm2) == (blind.status, blind.ideal_norm2)
    policy_gradient = Algorithm(Loss.DR_GRPO)
    assert align(ours, policy_gradient, P, ids=IDS) == align(plain, policy_gradient, P, ids=IDS)
    # What sets add up without a prior, and compare teachers by, has none of a teacher either.
    sums = [measure(one, REVERSE, P, T, ids=IDS).draws for one in (ours, plain)]
    assert sums[0].gain is not None
    assert sums[1].gain is not None
    assert sums[0].gain.tobytes() == sums[1].gain.tobytes()


def test_exact_outcomes_and_what_many_rollouts_say_stand() -> None:
    n, wins = [1, 10_000, 10_000, 0, 0], [1, 9_000, 1_000, 0, 0]
    found = counts(n, wins, [True, False, False, False, False])
    s = NodePosterior(found, P, seed=1).believed_of(P, T).success
    assert np.all(s[:, 0] == 1.0)
    np.testing.assert_allclose(s[:, 1:3].mean(axis=0), [0.9, 0.1], atol=0.002)
    jeffreys = NodePosterior(found, P, seed=1, model=JeffreysPosterior())
    assert jeffreys.believed_of(P, T) is jeffreys.believed


def test_teachers_are_compared_on_draws_that_they_share() -> None:
    found = counts([6, 5, 2, 0, 0], [4, 2, 1, 0, 0])
    drawn = NodePosterior(found, P, seed=1, size=4000)
    near = T * np.array([1.0, 1.001, 0.999, 1.0, 1.0])
    near /= near.sum()

    def gain(t: np.ndarray) -> np.ndarray:
        found: np.ndarray = drawn.believed_of(P, t).gradient @ descent(REVERSE, P, t)
        return found

    # Who thinks nearly the same gains nearly the same in every draw.
    assert np.std(gain(T) - gain(near)) < 0.01 * np.std(gain(T))
    # Who thinks the opposite loses what the other gains.
    assert np.corrcoef(gain(T), gain(AGAINST))[0, 1] < -0.9
    replaced, others = changed(drawn, T), changed(drawn, AGAINST)
    assert 0 < (replaced & others).sum() == min(replaced.sum(), others.sum())
    assert np.corrcoef(gain(T)[replaced & others], gain(AGAINST)[replaced & others])[0, 1] < -0.3
    blind = NodePosterior(NONE, P, seed=1, size=4000)
    shares = shares_of_best(
        [blind.believed_of(P, t).gradient @ descent(REVERSE, P, t) for t in (T, AGAINST)]
    )
    assert shares[0] == pytest.approx(0.5, abs=0.03)


def test_intervals_hold_what_an_informed_teacher_gains() -> None:
    missed = {}
    for model in (HierarchicalPosterior(), Unopinionated()):
        rows = []
        for seed in range(60):
            node = random_node(10_000 + seed, 50, "informed")
            found = rolled_out(node, 128, policy, np.random.default_rng((seed, 7)))
            rows.append(held(node, found, model, seed=seed))
        missed[type(model)] = dict(zip(QUANTITIES, 1.0 - np.nanmean(rows, axis=0), strict=True))
    ours, blind = missed[HierarchicalPosterior], missed[Unopinionated]
    assert ours["success"] == blind["success"]
    names = ("cosine", "gain", "advantage")
    assert sum(ours[name] for name in names) < 0.75 * sum(blind[name] for name in names)
