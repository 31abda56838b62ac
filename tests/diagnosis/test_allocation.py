"""Where the next rollouts go: the planner against brute force and against the truth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unmask_server.diagnosis import Counts, Interval, NodePosterior
from unmask_server.diagnosis.allocation import (
    Objective,
    Problem,
    Statistic,
    believe,
    check,
    forecast,
    half_widths,
    sensitivity,
    spend,
)
from unmask_server.diagnosis.allocation.predict import Grown, growing, pilot, simulate
from unmask_server.diagnosis.allocation.sensitivity import _set_slopes
from unmask_server.diagnosis.allocation.spend import needed
from unmask_server.diagnosis.tilt import Opinion

from bench.simulated import World, by_policy, lone_nodes, trajectories

COSINE = Objective(Statistic.COSINE, 0.2)


def known(world: World, each: int, seed: int = 0) -> Problem:
    """The world's problem after so many rollouts from every node, children kept."""
    problem = by_policy(world, each, np.random.default_rng(seed))
    return replace(problem, child=world.problem.child)


def test_a_child_tells_its_parent_what_its_own_tokens_say() -> None:
    problem = known(trajectories(1, paths=2, length=5), 200)
    beliefs = believe(problem)
    assert beliefs.inner.sum() > 0
    for cell in np.flatnonzero(beliefs.inner):
        child = problem.child[cell]
        cells = slice(problem.start[child], problem.start[child + 1])
        assert beliefs.mean[cell] == pytest.approx(problem.p[cells] @ beliefs.mean[cells])


def test_a_child_that_knows_less_is_not_asked() -> None:
    world = trajectories(1, paths=1, length=3)
    n = np.where(world.problem.child >= 0, 1000.0, 0.0)
    problem = replace(world.problem, n=n, reward_sum=n / 2)
    first = problem.child[: problem.start[1]] >= 0
    beliefs = believe(problem)
    # The last node was never tried.
    assert not beliefs.inner[problem.parent[problem.nodes - 1]]
    assert beliefs.mean[: problem.start[1]][first][0] == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("statistic", [Statistic.POOLED_COSINE, Statistic.GAIN_PER_UNIT_STEP])
def test_slopes_of_sets_are_the_derivatives(statistic: Statistic) -> None:
    """Against finite differences of the statistic itself."""
    problem = known(lone_nodes(3, nodes=4, tokens=5), 100_000)
    beliefs = believe(problem)
    # No estimation noise in the norm, so that the statistic is exactly the formula.
    beliefs = replace(beliefs, variance=np.zeros_like(beliefs.variance))

    def value(s: np.ndarray) -> float:
        p, d = problem.p, problem.steps[0]
        g = p * (s - problem.spread(problem.sums(p * s)))
        gain = float(g @ d) / np.sqrt(d @ d)
        return gain / np.sqrt(g @ g) if statistic is Statistic.POOLED_COSINE else gain

    flat = np.zeros(problem.nodes, dtype=bool)
    slopes, theta = _set_slopes(problem, beliefs, statistic, flat, np.zeros_like(problem.steps))
    assert theta[0] == pytest.approx(value(beliefs.mean))
    for cell in range(0, len(problem.p), 3):
        moved = np.zeros(len(problem.p))
        moved[cell] = 1e-6
        numeric = (value(beliefs.mean + moved) - value(beliefs.mean - moved)) / 2e-6
        assert slopes[0, cell] == pytest.approx(numeric, rel=1e-4, abs=1e-8)


def test_the_variance_believed_is_that_of_the_cosines() -> None:
    """With data enough for a straight line, and against draws of our own."""
    problem = known(lone_nodes(5, nodes=30), 5000)
    beliefs = believe(problem)
    found = sensitivity(problem, beliefs, COSINE)
    rng = np.random.default_rng(1)
    s = beliefs.mean + np.sqrt(beliefs.variance) * rng.normal(size=(500, len(problem.p)))
    g = problem.p * (s - problem.spread(problem.sums(problem.p * s)))
    d = problem.steps[0]
    norms = np.sqrt(problem.sums(g * g) * problem.sums(d * d))
    drawn = (problem.sums(g * d) / norms).std(axis=0)
    assert np.median(np.sqrt(found.variance[0]) / drawn) == pytest.approx(1.0, abs=0.15)


def test_without_teachers_the_direction_of_the_gradient_becomes_sure() -> None:
    world = lone_nodes(2, nodes=10)
    bare = replace(
        world.problem,
        steps=np.zeros((0, len(world.s))),
        defined=np.zeros((0, 10), dtype=bool),
        group=np.zeros(0, dtype=np.int64),
    )
    few = known(replace(world, problem=bare), 20)
    many = known(replace(world, problem=bare), 20_000)
    assert not sensitivity(few, believe(few), COSINE).done
    assert sensitivity(many, believe(many), COSINE).done


@settings(max_examples=60)
@given(seed=st.integers(0, 10_000), rollouts=st.integers(1, 5000))
def test_a_plan_is_deterministic_of_the_size_asked_and_never_for_what_is_known(
    seed: int, rollouts: int
) -> None:
    problem = known(trajectories(seed, paths=2, length=4, tokens=6), 30, seed)
    problem = replace(problem, known=np.arange(len(problem.p)) % 5 == 0)
    beliefs = believe(problem)
    found = sensitivity(problem, beliefs, COSINE)
    plan = spend(problem, beliefs, found, rollouts=rollouts, seed=seed)
    again = spend(problem, beliefs, found, rollouts=rollouts, seed=seed)
    assert np.array_equal(plan.forced, again.forced)
    assert np.array_equal(plan.free, again.free)
    assert plan.total <= rollouts + 2
    assert not plan.forced[problem.known | ~problem.forceable].any()
    assert not plan.forced[found.weight <= 0].any()


def test_marginal_gains_are_equal_where_rollouts_go() -> None:
    """The condition of an optimum (Lagrange), where no cell is at its limit."""
    problem = known(lone_nodes(7, nodes=12, tokens=8), 400)
    beliefs = believe(problem)
    found = sensitivity(problem, beliefs, replace(COSINE, half_width=0.01, flat_norm=0.0))
    plan = spend(problem, beliefs, found, rollouts=1200, seed=0)
    gain = found.weight * beliefs.noise / (beliefs.strength + plan.forced) ** 2 / problem.tokens
    inside = (plan.forced > 20) & (plan.forced < problem.n - 1)
    assert inside.sum() >= 3
    assert gain[inside].max() / gain[inside].min() < 1.3
    untouched = (plan.forced == 0) & problem.forceable & (found.weight > 0)
    assert gain[untouched].max() <= 2.0 * gain[inside].max()


def test_nodes_that_the_bound_makes_flat_get_nothing() -> None:
    world = lone_nodes(1, nodes=3, tokens=4)
    p = world.problem.p.copy()
    p[:4] = (0.99, 0.004, 0.003, 0.003)
    problem = replace(world.problem, p=p)
    found = sensitivity(problem, believe(problem), COSINE)
    assert found.flat[0]
    assert found.settled[0, 0]
    assert not spend(problem, believe(problem), found, rollouts=500, seed=0).forced[:5].any()
    assert pilot(problem, COSINE)[0] == 0


def test_a_token_that_was_never_tried_keeps_a_node_open() -> None:
    """That the others all failed does not prove that this one does."""
    world = lone_nodes(1, nodes=1, tokens=3)
    p = np.array([0.5, 0.3, 0.2, 0.0])
    n = np.array([60.0, 60.0, 0.0, 0.0])
    problem = replace(world.problem, p=p, n=n, reward_sum=np.zeros(4))
    assert not sensitivity(problem, believe(problem), COSINE).flat[0]
    tried = replace(problem, n=np.array([60.0, 60.0, 60.0, 0.0]))
    assert sensitivity(tried, believe(tried), COSINE).flat[0]


def test_a_dearer_cell_gets_less() -> None:
    problem = known(lone_nodes(4, nodes=1, tokens=4), 200)
    beliefs = believe(problem)
    found = sensitivity(problem, beliefs, replace(COSINE, half_width=0.01))
    cheap = spend(problem, beliefs, found, rollouts=200, seed=0)
    most = int(np.argmax(cheap.forced))
    tokens = problem.tokens.copy()
    tokens[most] *= 25.0
    dear = spend(replace(problem, tokens=tokens), beliefs, found, rollouts=200, seed=0)
    assert dear.forced[most] < cheap.forced[most]


def grown(world: World, objective: Objective, seed: int) -> Grown:
    """The growth once the planner is content."""
    steps = growing(world.problem, world.s, objective, np.random.default_rng(seed))
    return next(at for at in steps if at.open_.done)


def test_the_precision_asked_for_is_the_precision_served() -> None:
    world = trajectories(11, paths=2, length=12, tokens=8)
    at = grown(world, COSINE, 0)
    problem, found = at.problem, at.open_
    widths = half_widths(problem, ~found.flat[None] & problem.defined)
    mine = widths[0, ~found.flat]
    assert np.quantile(mine, 0.75) < 1.5 * COSINE.half_width
    error = np.abs(world.cosines(believe(problem).mean) - world.cosines(world.s))[0, ~found.flat]
    assert np.median(error) < COSINE.half_width


def test_fewer_rollouts_than_drawing_from_the_policy() -> None:
    """At one error over some nodes; measured properly by `bench.allocation`."""
    world = lone_nodes(21, nodes=150)
    objective = Objective(Statistic.COSINE, 1e-3, flat_norm=0.0)
    rng = np.random.default_rng(0)
    steps = growing(world.problem, world.s, objective, rng)
    problem = next(at.problem for at in steps if at.rollouts >= 300 * 150)
    truth = world.cosines(world.s)[0]

    def error(at: Problem) -> float:
        return float(np.sqrt(np.mean((world.cosines(believe(at).mean)[0] - truth) ** 2)))

    assert error(problem) < 0.85 * error(by_policy(world, int(problem.n.sum() / 150), rng))


def test_the_better_teacher_is_found() -> None:
    right = 0
    for seed in range(24):
        world = trajectories(100 + seed, paths=8, length=15, tokens=8, teachers=2, lead=2.0)
        problem = grown(world, Objective(Statistic.RANKING, 0.02), seed).problem
        gains = problem.steps @ world.gradient(believe(problem).mean)[0]
        truth = problem.steps @ world.gradient(world.s)[0]
        norms = np.sqrt((problem.steps**2).sum(axis=1))
        right += int(np.argmax(gains / norms) == np.argmax(truth / norms))
    assert right >= 21


def test_a_forecast_grows_with_precision_and_is_nothing_when_all_is_known() -> None:
    world = lone_nodes(4, nodes=5, tokens=8)
    rough = forecast(known(world, 40), replace(COSINE, half_width=0.3), limit=1e6)
    fine = forecast(known(world, 40), replace(COSINE, half_width=0.1), limit=1e6)
    assert rough.rollouts.low <= rough.rollouts.median <= rough.rollouts.high
    assert fine.rollouts.median > 2 * rough.rollouts.median
    assert fine.tokens.median > fine.rollouts.median
    done = forecast(known(world, 200_000), COSINE, limit=1e6)
    assert done.rollouts.high == 0.0
    assert not done.may_be_more


def test_a_forecast_that_runs_into_its_limit_says_so() -> None:
    world = lone_nodes(3, nodes=4, tokens=32)
    objective = replace(COSINE, half_width=0.001)
    found = forecast(known(world, 40), objective, limit=1000)
    assert found.may_be_more
    assert not simulate(known(world, 40), world.s, objective, limit=1000, seed=0).reached


def test_what_should_be_needed_falls_as_it_is_given() -> None:
    world = lone_nodes(9, nodes=4, tokens=8)
    few, more = known(world, 100), known(world, 400)
    objective = replace(COSINE, half_width=0.05, flat_norm=0.0)
    first = needed(few, believe(few), sensitivity(few, believe(few), objective))
    second = needed(more, believe(more), sensitivity(more, believe(more), objective))
    assert 0 < second < first


def test_a_check_that_fails_asks_for_more_and_one_that_passes_for_nothing() -> None:
    problem = known(lone_nodes(4, nodes=5, tokens=8), 40)
    rough = replace(COSINE, half_width=0.01)
    found = sensitivity(problem, believe(problem), replace(COSINE, half_width=10.0))
    said = check(problem, found, rough)
    assert not said.passed
    tightened = np.asarray(said.tightened)
    assert tightened.min() < 1.0
    assert tightened.max() <= 1.0
    content = check(problem, found, replace(COSINE, half_width=10.0))
    assert content.passed
    assert content.easily
    assert content.tightened == 1.0


def test_what_is_asked_for_roughly_costs_no_more_than_what_is_asked_for_finely() -> None:
    problem = known(lone_nodes(3, nodes=5, tokens=8), 40)
    rough = forecast(problem, replace(COSINE, half_width=0.3), limit=1e6)
    fine = forecast(problem, replace(COSINE, half_width=0.1), limit=1e6)
    assert rough.rollouts.median < fine.rollouts.median


def test_values_from_nodes_below_are_hardly_moved_by_their_closed_form() -> None:
    problem = known(trajectories(2, paths=2, length=6), 400)
    everything = np.ones((len(problem.steps), problem.nodes), dtype=bool) & problem.defined
    first = everything & (np.arange(problem.nodes) == 0)
    alone, together = half_widths(problem, first), half_widths(problem, everything)
    assert alone[:, 0] == pytest.approx(together[:, 0], rel=0.3, abs=0.02)
    assert not alone[:, 1:].any()


def test_half_widths_are_those_that_are_served_of_a_teacher_who_may_know() -> None:
    problem = by_policy(lone_nodes(3, 4), 60, np.random.default_rng(0))
    rng = np.random.default_rng(1)
    p = problem.p
    leans = np.zeros(problem.steps.shape, dtype=np.int64)
    served = np.zeros((1, 4))
    for node in range(4):
        cells = problem.of(node)
        t = p[cells] * np.exp(rng.normal(size=len(p[cells])))
        t /= t.sum()
        opinion = Opinion.of(p[cells], t)
        assert opinion is not None
        leans[0, cells] = opinion.lean
        counts = Counts(problem.n[cells], problem.reward_sum[cells], problem.known[cells])
        drawn = NodePosterior(counts, p[cells], seed=node, size=20_000).believed_of(p[cells], t)
        d = problem.steps[0, cells]
        cosines = drawn.gradient @ d / np.sqrt(drawn.gradient_norm2 * (d @ d))
        served[0, node] = Interval.of(cosines).width / 2.0
    wanted = np.ones((1, 4), dtype=bool)
    informed = half_widths(replace(problem, leans=leans), wanted)
    np.testing.assert_allclose(informed, served, rtol=0.15)
    # Without a step there is no teacher.
    none = {name: getattr(problem, name)[:0] for name in ("steps", "defined", "group")}
    alone = replace(problem, **none)
    nobody = half_widths(alone, wanted)
    np.testing.assert_array_equal(half_widths(replace(alone, leans=leans[:0]), wanted), nobody)
    # Where it is too wide as it is, nobody's opinion is asked.
    blind = half_widths(problem, wanted)
    assert np.any(blind != informed)
    asked = half_widths(replace(problem, leans=leans), wanted, enough=float(np.median(blind)))
    np.testing.assert_array_equal(asked, np.where(blind <= np.median(blind), informed, blind))
