"""Any checkpoint directory with any JSONL works the same way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from unmask.v1 import catalog_pb2, diagnosis_pb2, growth_pb2, trajectory_pb2

from tests.collected import collected
from tests.e2e.conftest import serving
from tests.e2e.test_main_job import grow, growth_of
from tests.tiny import byte_bpe, save, sentence_piece

JSONL = b"""\
{"problem": "How many apples are left?", "solution": "Tom has 5 and eats 2, so \\\\boxed{3}"}
{"question": "3 + 4 = ?", "answer": "add them: #### 7"}
"""


@pytest.mark.parametrize(
    ("kind", "tokenizer"),
    [("llama", byte_bpe), ("gemma", sentence_piece)],
)
async def test_another_architecture_with_another_tokenizer(
    kind: str, tokenizer: Callable[[], Tokenizer], tmp_path: Path
) -> None:
    shared = tokenizer()
    student = save(tmp_path / "student", shared, kind=kind, seed=1, scale=4.0, chat=None)
    teacher = save(tmp_path / "teacher", shared, kind=kind, seed=2, scale=4.0, chat=None, padding=5)
    async with serving(f"sqlite:///{tmp_path / 'unmask.db'}", tmp_path / "server") as world:
        catalog, stubs = world.stubs.catalog, world.stubs
        await catalog.RegisterPolicy(
            catalog_pb2.RegisterPolicyRequest(
                name="student",
                model=str(student),
                max_new_tokens=12,
                sampling=catalog_pb2.Sampling(temperature=0.8, top_p=0.95),
            )
        )
        await catalog.RegisterTeacher(
            catalog_pb2.RegisterTeacherRequest(
                name="teacher", model=str(teacher), policies=["student"]
            )
        )
        await catalog.RegisterTeacher(
            catalog_pb2.RegisterTeacherRequest(
                name="told", base_policy="student", context=catalog_pb2.Context(name="answer")
            )
        )
        registered = await catalog.RegisterQuestions(
            catalog_pb2.RegisterQuestionsRequest(jsonl=JSONL)
        )
        questions = [r.question for r in registered.results]
        assert [q.fields["answer"] for q in questions] == ["3", "7"]
        sampled = await collected(
            stubs.trajectory.SampleTrajectories(
                trajectory_pb2.SampleTrajectoriesRequest(
                    policy="student", questions=[questions[0].id], count=1, seed=1
                )
            )
        )
        trajectory = sampled.trajectories[0]
        assert "".join(t.text for t in trajectory.tokens).startswith(trajectory.text)
        await grow(
            world,
            growth_of(growth_pb2.GrowthTarget(trajectory=trajectory.id), rollouts_per_node=8),
        )
        answers = [
            answer
            async for answer in stubs.diagnosis.StreamTrajectoryAlignments(
                diagnosis_pb2.StreamTrajectoryAlignmentsRequest(
                    trajectory=trajectory.id,
                    teachers=["teacher", "told"],
                    algorithms=[
                        diagnosis_pb2.Algorithm(loss=diagnosis_pb2.LOSS_FORWARD_KL),
                        diagnosis_pb2.Algorithm(
                            loss=diagnosis_pb2.LOSS_REVERSE_KL, temperature=0.8
                        ),
                    ],
                )
            )
        ]
        assert len(answers) == trajectory.length
        for answer in answers:
            assert len(answer.alignments) == 4
            # Where the student is as good as sure nothing is spent.
            assert answer.node.rollouts >= 8 or answer.node.max_probability > 0.999
            assert 0 < answer.node.covered_mass <= 1
