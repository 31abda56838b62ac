"""Losses of whole sequences and mixtures, over a socket, against the models run directly."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sqlalchemy import Select, func, select
from unmask import parse_algorithm
from unmask.v1 import catalog_pb2, diagnosis_pb2, growth_pb2, trajectory_pb2
from unmask_server.database import schema
from unmask_server.tree import StoredRollout, TreeStore

from tests.e2e.conftest import World
from tests.e2e.test_bad_input import INVALID, refused
from tests.e2e.test_main_job import at, grow, growth_of, prefix, sampled, statistics


class Direct:
    """A model run without Unmask."""

    def __init__(self, folder: Path, prompt: list[int]) -> None:
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
        self.prompt = prompt

    def logprobs(self, tokens: list[int]) -> np.ndarray:
        """Of each next token after each prefix, shape (tokens + 1, 21)."""
        with torch.no_grad():
            logits = self.model(torch.tensor([[*self.prompt, *tokens]])).logits[0]
        return torch.log_softmax(logits[len(self.prompt) - 1 :, :21], -1).numpy()

    def of(self, tokens: list[int]) -> np.ndarray:
        """Log-probability of each token."""
        return self.logprobs(tokens)[np.arange(len(tokens)), tokens]


@dataclass
class Grown:
    """A trajectory with rollouts at its nodes, and both models."""

    trajectory: trajectory_pb2.Trajectory
    student: Direct
    teacher: Direct
    rollouts: list[StoredRollout]
    own: bytes
    """The trajectory's rollout."""

    @property
    def tokens(self) -> list[int]:
        return [token.id for token in self.trajectory.tokens]

    def ratios(self, tokens: list[int]) -> np.ndarray:
        """log T - log P of each token."""
        return self.teacher.of(tokens) - self.student.of(tokens)


def one(world: World, statement: Select[Any]) -> Any:
    with world.app.database.connect() as connection:
        return connection.scalar(statement)


@pytest.fixture
async def grown(world: World, models: Path) -> Grown:
    trajectory = await sampled(world)
    await grow(world, growth_of(growth_pb2.GrowthTarget(trajectory=trajectory.id)))
    wanted = catalog_pb2.PreviewPromptRequest(question="one", policy="student", teacher="teacher")
    shown = await world.stubs.catalog.PreviewPrompt(wanted)
    trees = TreeStore(world.app.database)
    tree = trees.open_tree(trajectory.policy_id, trajectory.question_id)
    return Grown(
        trajectory,
        Direct(models / "student", list(shown.policy.tokens)),
        Direct(models / "teacher", list(shown.teacher.tokens)),
        trees.iter_rollouts(tree.id, 0, 100_000),
        one(world, select(schema.trajectory.c.rollout_uid).filter_by(id=trajectory.id)),
    )


async def alignment(
    world: World, grown: Grown, position: int, algorithm: str, teacher: str = "teacher"
) -> diagnosis_pb2.Alignment:
    request = diagnosis_pb2.GetAlignmentRequest(
        node=at(grown.trajectory.id, position),
        teachers=[teacher],
        algorithms=[parse_algorithm(algorithm)],
    )
    (found,) = (await world.stubs.diagnosis.GetAlignment(request)).alignments
    return found


def moments(grown: Grown, t: int, kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rollouts, means and sums of squares of what follows each token at position t."""
    values: dict[int, list[float]] = {}
    for rollout in grown.rollouts:
        tokens = list(rollout.tokens)
        valid = tokens[:t] == grown.tokens[:t] and rollout.forced_depth <= t + 1 <= len(tokens)
        if not valid or rollout.uid == grown.own:
            continue
        mine = values.setdefault(tokens[t], [])
        if tokens[t] == 0 or t + 1 == 6 or len(mine) == 32:
            continue
        later = grown.ratios(tokens)[t + 1 :]
        if kind == "mean":
            mine.append(float(later.mean()))
        else:
            mine.append(float(later.sum()))
    n, mean, squares = np.zeros(21), np.zeros(21), np.zeros(21)
    for token, found in values.items():
        if found:
            n[token], mean[token] = len(found), np.mean(found)
            squares[token] = np.sum((np.array(found) - mean[token]) ** 2)
    return n, mean, squares


@pytest.mark.parametrize(
    ("text", "kind"), [("minillm", "sum"), ("minillm:length_normalized", "mean")]
)
async def test_minillm_rests_on_the_trees_rollouts(
    world: World, grown: Grown, text: str, kind: str
) -> None:
    for t in (0, 2):
        found = await alignment(world, grown, t, text)
        n, mean, squares = moments(grown, t, kind)
        free = (n - 1).clip(0).sum()
        variance = (squares + 4 * squares.sum() / free) / ((n - 1).clip(0) + 4)
        variance[0] = 0.0
        p = np.exp(grown.student.logprobs(grown.tokens)[t])
        # One token's step about its expectation: the single step is exact, the rest is sampled.
        steps = mean[:, None] * (np.eye(21) - p)
        expected = p @ steps
        spread = p @ (((steps - expected) ** 2).sum(1) + variance * ((np.eye(21) - p) ** 2).sum(1))
        assert found.sample_variance == pytest.approx(spread, rel=2e-3)


async def test_minillm_scores_each_rollout_once_and_samples_nothing(
    world: World, grown: Grown
) -> None:
    scores = select(func.count()).select_from(schema.rollout_score)
    before = await statistics(world)
    first = await alignment(world, grown, 1, "minillm")
    scored = one(world, scores)
    assert scored > 0
    # Another algorithm of the kind and the same node by another name read what is there.
    await alignment(world, grown, 1, "minillm:length_normalized:ratio_clip=2")
    assert one(world, scores) == scored
    assert await alignment(world, grown, 1, "minillm") == first
    assert (await statistics(world)).rollouts_sampled == before.rollouts_sampled


async def test_one_generations_minillm_step_is_as_worked_out_by_hand(
    world: World, grown: Grown
) -> None:
    t = 1
    y = grown.tokens[t]
    ratio = grown.ratios(grown.tokens)
    log_p = grown.student.logprobs(grown.tokens)[t]
    p, t_probs = np.exp(log_p), np.exp(grown.teacher.logprobs(grown.tokens)[t])
    towards = np.eye(21)[y] - p
    own = p * np.log(t_probs / p)
    exact = own - p * own.sum()
    for text, step in (
        ("minillm:sampled", exact + ratio[t + 1 :].sum() * towards),
        ("minillm:sampled:length_normalized", exact + ratio[t + 1 :].mean() * towards),
        ("minillm:sampled:no_single_step", ratio[t:].sum() * towards),
        ("minillm:sampled:no_single_step:length_normalized", ratio[t:].mean() * towards),
        (
            "minillm:sampled:no_single_step:ratio_clip=0.3",
            np.clip(ratio[t:], -0.3, 0.3).sum() * towards,
        ),
    ):
        found = await alignment(world, grown, t, text)
        assert found.descent_norm_squared == pytest.approx(float(step @ step), rel=1e-4), text


async def test_nodes_count_by_how_often_the_teachers_data_meet_them(
    world: World, grown: Grown
) -> None:
    t = 3
    ratio = grown.ratios(grown.tokens[:t])
    found = await alignment(world, grown, t, "forward_kl:lambda=0.25")
    assert found.path_weight == pytest.approx(0.25 + 0.75 * np.exp(ratio.sum()), rel=1e-4)
    plain = await alignment(world, grown, t, "forward_kl")
    assert found.cosine == plain.cosine
    assert not plain.HasField("path_weight")
    sums = []
    for text in ("forward_kl", "forward_kl:lambda=0"):
        request = diagnosis_pb2.SummarizeAlignmentsRequest(
            trajectories=[grown.trajectory.id],
            teachers=["teacher"],
            algorithms=[parse_algorithm(text)],
        )
        (row,) = (await world.stubs.diagnosis.SummarizeAlignments(request)).summaries
        sums.append(row)
    assert sums[0].mean_cosine == sums[1].mean_cosine
    assert sums[0].gain_per_unit_step != sums[1].gain_per_unit_step


async def test_a_reward_is_added_to_a_sampled_step(world: World, grown: Grown) -> None:
    t = 1
    y = grown.tokens[t]
    p = np.exp(grown.student.logprobs(grown.tokens)[t])
    free = [r for r in grown.rollouts if r.forced_depth == 0]
    (key,) = free[0].rewards
    mean = np.mean([r.rewards[key] for r in free])
    a = grown.ratios(grown.tokens)[t] + 0.5 * (grown.trajectory.reward - mean)
    found = await alignment(world, grown, t, "opd:reward=0.5")
    step = a * (np.eye(21)[y] - p)
    assert found.descent_norm_squared == pytest.approx(float(step @ step), rel=1e-4)


async def test_without_a_context_minillm_has_no_signal(world: World, grown: Grown) -> None:
    await world.stubs.catalog.RegisterTeacher(
        catalog_pb2.RegisterTeacherRequest(name="self", base_policy="student")
    )
    for text in ("minillm", "minillm:sampled", "minillm:length_normalized"):
        found = await alignment(world, grown, 1, text, teacher="self")
        assert found.status == diagnosis_pb2.ALIGNMENT_STATUS_NO_SIGNAL
        assert not found.HasField("cosine")


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("minillm:sampled", "algorithms[0].form"),
        ("minillm:temperature=2", "algorithms[0].temperature"),
        ("opd:reward=1", "algorithms[0].form"),
        ("reverse_kl:top_k=21", "algorithms[0].top_k"),
        ("reverse_kl:top_k=0", "algorithms[0].top_k"),
        ("grpo:lambda=0.5", "algorithms[0].student_share"),
        ("jsd:ratio_clip=1", "algorithms[0].ratio_clip"),
        ("reverse_kl:no_single_step", "algorithms[0].decomposition"),
        ("reverse_kl:token_clip=nan", "algorithms[0].token_clip"),
        ("reverse_kl:lambda=-1", "algorithms[0].student_share"),
    ],
)
async def test_settings_that_mean_nothing_are_refused(world: World, text: str, field: str) -> None:
    request = diagnosis_pb2.GetAlignmentRequest(
        node=prefix(observed=4),
        teachers=["teacher"],
        algorithms=[parse_algorithm(text)],
    )
    await refused(world.stubs.diagnosis.GetAlignment(request), INVALID, field)
