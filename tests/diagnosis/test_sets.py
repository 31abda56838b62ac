"""Statements over many nodes."""

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
    Status,
    descent,
    ideal_gradient,
    measure,
    summarize_set,
)
from unmask_server.diagnosis.terms import Draws

from tests.diagnosis.making import TrueNode, counts, posterior_of, true_node

REVERSE = Algorithm(Loss.REVERSE_KL)
CERTAIN = 10**7


def terms(
    node: TrueNode,
    drawn: NodePosterior,
    key: tuple[str, str] = ("q", "t"),
    algorithm: Algorithm = REVERSE,
) -> NodeTerms:
    measured = measure(drawn, algorithm, node.p, node.t, ids=node.ids)
    alignment = measured.alignment
    return NodeTerms(*key, alignment.status, alignment.effective_support, measured.draws)


def well_known(seed: int) -> tuple[TrueNode, NodePosterior]:
    node = true_node(seed, 5)
    return node, posterior_of(node, seed, CERTAIN, "equal")


def test_with_certain_success_summaries_are_the_formulas() -> None:
    nodes = [well_known(seed) for seed in range(12)]
    summary = summarize_set([terms(*node) for node in nodes], seed=1)
    g = [ideal_gradient(node.p, node.s) for node, _ in nodes]
    d = [descent(REVERSE, node.p, node.t) for node, _ in nodes]
    gain, ideal, step = (
        sum(float(a @ b) for a, b in zip(x, y, strict=True)) for x, y in ((g, d), (g, g), (d, d))
    )
    gained = np.mean([(node.t - node.p) @ node.s for node, _ in nodes])
    assert summary.pooled_cosine is not None
    assert summary.gain_per_unit_step is not None
    assert summary.mean_advantage is not None
    assert summary.pooled_cosine.median == pytest.approx(gain / np.sqrt(ideal * step), abs=2e-3)
    assert summary.gain_per_unit_step.median == pytest.approx(gain / np.sqrt(step), abs=1e-3)
    assert summary.mean_advantage.median == pytest.approx(gained, abs=1e-3)
    assert summary.nodes == 12
    assert sum(summary.statuses.values()) == 12
    assert summary.support_quartiles is not None
    assert list(summary.support_quartiles) == sorted(summary.support_quartiles)


def test_the_mean_cosine_is_over_nodes_with_a_score_and_the_rest_is_counted() -> None:
    flat = true_node(0, 5, spread=0.0)
    scored = [well_known(seed) for seed in range(6)]
    nodes = [terms(*node) for node in scored]
    nodes.append(terms(flat, posterior_of(flat, 0, 50)))
    nodes.append(terms(flat, NodePosterior(Counts.empty(6), flat.p, seed=1)))
    summary = summarize_set(nodes, seed=1)
    found = [n for n in nodes if n.draws.cosine is not None]
    assert summary.mean_cosine is not None
    assert summary.mean_cosine.median == pytest.approx(
        np.mean([np.median(n.draws.cosine) for n in found if n.draws.cosine is not None]), abs=0.02
    )
    assert summary.statuses[Status.NO_DATA] == 1
    assert summary.share(Status.NO_DATA) == pytest.approx(1 / 8)
    assert summary.share(Status.UNBOUNDED) == 0.0


def test_equal_content_and_seed_give_equal_summaries() -> None:
    nodes = [
        terms(n, posterior_of(n, i, 64), ("q", str(i % 2)))
        for i in range(6)
        for n in [true_node(i, 5)]
    ]
    assert summarize_set(nodes, seed=3) == summarize_set(nodes, seed=3)
    assert summarize_set(nodes, seed=3) != summarize_set(nodes, seed=4)


def test_the_policy_gradients_pooled_cosine_is_one_without_bias() -> None:
    nodes = [
        terms(n, posterior_of(n, i, 200), algorithm=Algorithm(Loss.DR_GRPO))
        for i in range(40)
        for n in [true_node(i, 5)]
    ]
    summary = summarize_set(nodes, seed=1)
    assert summary.pooled_cosine is not None
    assert summary.pooled_cosine.low == pytest.approx(1, abs=1e-6)


def test_questions_that_disagree_widen_intervals() -> None:
    def summary_of(question: Callable[[int], str]) -> float:
        nodes = [terms(*well_known(seed), (question(seed), str(seed))) for seed in range(12)]
        interval = summarize_set(nodes, seed=1).gain_per_unit_step
        assert interval is not None
        return interval.width

    one_trajectory = summarize_set([terms(*well_known(seed)) for seed in range(12)], seed=1)
    assert one_trajectory.gain_per_unit_step is not None
    assert summary_of(str) > 10 * one_trajectory.gain_per_unit_step.width
    # Trajectories of one question are resampled too.
    assert summary_of(lambda seed: "q") > 10 * one_trajectory.gain_per_unit_step.width


def test_many_nodes_with_few_rollouts_pool_without_bias() -> None:
    gains, truths = [], []
    for i in range(400):
        node = true_node(i, 8)
        found = terms(node, posterior_of(node, i, 16, "equal"))
        assert found.draws.gain is not None
        gains.append(found.draws.gain.mean())
        truths.append(ideal_gradient(node.p, node.s) @ descent(REVERSE, node.p, node.t))
    errors = np.array(gains) - np.array(truths)
    assert errors.mean() == pytest.approx(0, abs=3 * errors.std() / 20)


def test_pairs_on_the_same_rollouts_cancel_their_shared_noise() -> None:
    first, second = SetTerms(), SetTerms()
    for i in range(30):
        node = true_node(i, 5)
        drawn = posterior_of(node, i, 64)
        near = TrueNode(node.p, 0.99 * node.t + 0.01 * node.p, node.s)
        key = (str(i % 5), str(i))
        first.add(terms(node, drawn, key))
        second.add(terms(near, drawn, key))
    difference = first.less(second, seed=1).mean_advantage
    alone = first.summarize(seed=1).mean_advantage
    assert difference is not None
    assert alone is not None
    assert difference.width < 0.05 * alone.width
    nothing = first.less(first, seed=1)
    assert nothing.pooled_cosine is not None
    assert nothing.pooled_cosine.width == 0.0


def test_only_the_same_trajectories_can_be_compared() -> None:
    first, second = SetTerms(), SetTerms()
    first.add(terms(*well_known(0), ("q", "a")))
    second.add(terms(*well_known(0), ("q", "b")))
    with pytest.raises(ValueError, match="same trajectories"):
        first.less(second, seed=1)


def test_nothing_has_no_statistics() -> None:
    empty = summarize_set([], seed=1)
    assert empty.nodes == 0
    assert empty.mean_cosine is None
    assert empty.support_quartiles is None
    assert empty.share(Status.FLAT) == 0.0
    blank = NodeTerms("q", "t", Status.NO_DATA, 2.0, Draws(None, None, None, None, None))
    only = summarize_set([blank, blank], seed=1)
    assert only.pooled_cosine is None
    assert only.mean_advantage is None


def test_nodes_without_data_may_come_first() -> None:
    node, drawn = well_known(1)
    blank = NodeTerms("q", "t", Status.NO_DATA, 2.0, Draws(None, None, None, None, None))
    one = summarize_set([terms(node, drawn)], seed=1)
    both = summarize_set([blank, terms(node, drawn)], seed=1)
    assert one.gain_per_unit_step == both.gain_per_unit_step


def test_without_a_known_norm_there_is_no_pooled_cosine() -> None:
    p = np.array([0.5, 0.5, 0.0])
    node = TrueNode(p, np.array([0.6, 0.4, 0.0]), np.zeros(3))
    drawn = NodePosterior(counts([10, 10, 0], [5, 5, 0]), p, seed=1)
    assert drawn.ideal_norm2 < 0
    summary = summarize_set([terms(node, drawn)], seed=1)
    assert summary.pooled_cosine is None
    assert summary.gain_per_unit_step is not None
