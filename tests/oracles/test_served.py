"""What a server answers is the gradient of the trainers' own losses."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import unmask
from unmask.v1 import diagnosis_pb2

pytestmark = pytest.mark.oracles

pytest.importorskip("trl")
pytest.importorskip("verl")

from unmask_server.api.algorithms import algorithm_message  # noqa: E402
from unmask_server.diagnosis import Loss, Rest, TopKOf  # noqa: E402

from tests.oracles.data import LENGTH, QUESTIONS, ROOT, STUDENT, TEACHER, Batch, batch_of  # noqa: E402
from tests.oracles.losses import Oracle, oracles, theirs  # noqa: E402

# What an outcome's advantage is comes from the rollouts, not from a teacher.
ALL = [o for o in oracles() if o.algorithm.needs_teacher and not o.offset]


@dataclass
class Served:
    """Two generations of the student, with rollouts at their nodes, and their logits."""

    client: unmask.Client
    trajectories: list[str]
    teacher: str
    batch: Batch
    in_float32: Batch
    """The same generations by models that run in float32, as the server's do."""
    vocabulary: int

    def tail(self, i: int, at: int) -> float:
        """Mass of the tokens that the server keeps in one bucket, each below 1e-5, in nats.

        That is times their log-ratios: within a divergence the bucket has one, they have many.
        """
        node = self.client.get_node(
            trajectory=self.trajectories[i],
            position=at,
            teachers=self.teacher,
            top_k=self.vocabulary,
        )
        listed = sum(one.probability for one in node.candidates if one.HasField("token"))
        student, teacher = (torch.log_softmax(z[i, at], -1) for z in self.logits)
        return max(0.0, 1.0 - listed) * (1.0 + float((teacher - student).abs().max()))

    def spread(self, oracle: Oracle, i: int, at: int) -> float:
        """The teacher's mass in the bucket of a loss over the student's k likeliest.

        It goes to the tail, which is one component of a served step and many of theirs.
        """
        algorithm = oracle.algorithm
        if not algorithm.top_k or (algorithm.top_k_of, algorithm.rest) != (
            TopKOf.STUDENT,
            Rest.TAIL,
        ):
            return 0.0
        student, teacher = (torch.softmax(z[i, at], -1) for z in self.logits)
        return 1.0 - float(teacher[student.topk(algorithm.top_k).indices].sum())

    @property
    def logits(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The student's and the teacher's."""
        return self.batch.student, self.batch.teacher


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder: Path = tmp_path_factory.mktemp("served")
    with unmask.local(folder / "oracles.db") as client:
        policy = client.register_policy(
            ROOT / "models" / STUDENT, temperature=1.0, max_new_tokens=LENGTH
        ).policy
        teacher = client.register_teacher(ROOT / "models" / TEACHER, policies=policy).teacher.id
        lines = QUESTIONS.read_bytes().splitlines(keepends=True)[:2]
        found = client.register_questions(b"".join(lines), verifier="hash_answer")
        questions = [result.question for result in found]
        trajectories = [
            client.sample_trajectories(policy, question, count=1, seed=1).trajectories[0]
            for question in questions
        ]
        prompts = [
            list(client.preview_prompt(question, policy=policy).policy.tokens)
            for question in questions
        ]
        client.grow(trajectories, rollouts=1500, teachers=teacher).wait()
        generated = [[token.id for token in one.tokens] for one in trajectories]
        yield Served(
            client,
            [one.id for one in trajectories],
            teacher,
            batch_of(prompts, generated),
            batch_of(prompts, generated, torch.float32),
            policy.model.vocab_size,
        )


@pytest.mark.parametrize("oracle", ALL, ids=lambda oracle: oracle.name)
def test_a_served_step_is_the_gradient_of_their_loss(oracle: Oracle, served: Served) -> None:
    d = theirs(oracle, served.batch, torch.float64)
    weight = oracle.weight(served.batch).numpy()
    # What the models' own arithmetic leaves open: two forward passes in float32 differ as much.
    noise = np.abs(theirs(oracle, served.in_float32, torch.float64) - d).max() / weight.max()
    cosines = exact = 0
    for i, trajectory in enumerate(served.trajectories):
        answers = served.client.trajectory_alignments(
            trajectory,
            teachers=served.teacher,
            algorithms=algorithm_message(oracle.algorithm),
            top_k=served.vocabulary,
        )
        for at, answer in enumerate(answers):
            (alignment,) = answer.alignments
            their = d[i, at] / weight[i, at]
            norm = float(np.linalg.norm(their))
            open_to = 4 * noise + 1e-6 + 2 * served.tail(i, at) + served.spread(oracle, i, at)
            assert math.sqrt(alignment.descent_norm_squared) == pytest.approx(norm, abs=open_to)
            exact += open_to < 0.02 * norm
            if alignment.status == diagnosis_pb2.ALIGNMENT_STATUS_OK and cosines < 8:
                ideal = served.client.ideal_gradient(
                    trajectory=trajectory, position=at, top_k=served.vocabulary
                )
                g = np.zeros(len(their))
                for component in ideal.components:
                    if component.HasField("token"):
                        g[component.token.id] = component.value.median
                cosine = float(g @ their / np.linalg.norm(g) / np.linalg.norm(their))
                assert alignment.cosine.low - 0.02 < cosine < alignment.cosine.high + 0.02
                cosines += 1
    assert cosines
    # The Jensen-Shannon divergences' steps are as small as what the tail leaves open.
    assert exact or oracle.algorithm.loss is Loss.JSD
