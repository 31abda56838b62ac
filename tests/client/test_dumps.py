"""Trainers' files as the trainers write them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from unmask.sharing.dumps import Trainer, read_dump
from unmask.v1 import sharing_pb2 as pb
from unmask.v1 import trajectory_pb2

STOP = trajectory_pb2.FINISH_REASON_STOP
LENGTH = trajectory_pb2.FINISH_REASON_LENGTH


def read(trainer: Trainer, path: Path, reward: str = "") -> list[Any]:
    return [one for _, one in read_dump(trainer, path, reward)]


def lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_verl_writes_texts_without_special_tokens(tmp_path: Path) -> None:
    row = {"input": "user\n1+1\nassistant\n", "output": "2", "gts": "2", "score": 1.0, "step": 7,
           "acc": True}  # fmt: skip
    (found,) = read("verl", lines(tmp_path / "7.jsonl", row))
    assert found == pb.TrainerGeneration(prompt_text=row["input"], text="2", reward=1.0)
    (found,) = read("verl", tmp_path / "7.jsonl", "acc")
    assert found.reward == 1.0


def test_verls_agent_loops_have_token_ids(tmp_path: Path) -> None:
    row = {"prompt_ids": [1, 2], "response_ids": [3, 4], "response_mask": [1, 1],
           "response_logprobs": [-0.5, -1.0], "score": 0}  # fmt: skip
    tool = {**row, "response_mask": [1, 0]}
    one, other = read("verl", lines(tmp_path / "a.jsonl", row, tool))
    assert one == pb.TrainerGeneration(
        prompt_tokens=[1, 2], tokens=[3, 4], logprobs=[-0.5, -1.0], reward=0.0
    )
    assert "not all of its tokens" in other


SAMPLE = {
    "group_index": 0, "index": 3, "prompt": "<user>1+1", "tokens": [1, 2, 3, 9],
    "response": "3<eos>", "response_length": 2, "label": "2", "reward": 1.0, "loss_mask": None,
    "weight_versions": ["5", "5"], "rollout_log_probs": [-0.1, -0.2], "status": "completed",
    "metadata": {}, "spec_info": {}, "remove_sample": False,
}  # fmt: skip


def test_slimes_samples_hold_prompt_and_response_together(tmp_path: Path) -> None:
    cut = {**SAMPLE, "status": "truncated", "rollout_log_probs": None}
    file = tmp_path / "rollout_4.json"
    file.write_text(json.dumps({"rollout_id": 4, "samples": [SAMPLE, cut]}))
    one, other = read("slime", file)
    assert one == pb.TrainerGeneration(
        prompt_tokens=[1, 2], tokens=[3, 9], logprobs=[-0.1, -0.2], reward=1.0, finish_reason=STOP
    )
    assert (other.finish_reason, list(other.logprobs)) == (LENGTH, [])
    assert read("slime", lines(tmp_path / "4.jsonl", SAMPLE, cut)) == [one, other]
    assert [where for where, _ in read_dump("slime", file)] == [
        f"{file}[0].samples[0]", f"{file}[0].samples[1]"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"status": "aborted"}, "aborted"),
        ({"status": "pending"}, "pending"),
        ({"weight_versions": ["5", "6"]}, "several versions"),
        ({"loss_mask": [1, 0]}, "not all of its tokens"),
        ({"response_length": 0}, "0 response tokens"),
    ],
)
def test_what_is_no_whole_generation_is_left_out(
    tmp_path: Path, change: dict[str, Any], why: str
) -> None:
    (found,) = read("slime", lines(tmp_path / "a.jsonl", {**SAMPLE, **change}))
    assert why in found


def test_slimes_rewards_may_have_parts(tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", {**SAMPLE, "reward": {"math": 0.5, "format": 1}})
    assert read("slime", file, "math")[0].reward == 0.5
    with pytest.raises(ValueError, match="math, format"):
        read("slime", file)


def test_trls_rollout_functions_give_token_ids(tmp_path: Path) -> None:
    row = {"prompt_ids": [1, 2], "completion_ids": [3, 4], "logprobs": [[-0.5], [-1.0]],
           "reward": 0.25}  # fmt: skip
    (found,) = read("trl", lines(tmp_path / "a.jsonl", row))
    assert found == pb.TrainerGeneration(
        prompt_tokens=[1, 2], tokens=[3, 4], logprobs=[-0.5, -1.0], reward=0.25
    )


def test_trls_logged_completions_are_texts_or_messages(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    rows = [
        {"step": 10, "prompt": [{"role": "user", "content": "1+1"}], "advantage": 0.0,
         "completion": [{"role": "assistant", "content": "2"}], "accuracy_reward": 1.0},
    ]  # fmt: skip
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "completions_00010.parquet")
    (found,) = read("trl", tmp_path / "completions_00010.parquet", "accuracy_reward")
    assert found == pb.TrainerGeneration(prompt_text="1+1", text="2", reward=1.0)
    several = {"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "1+1"}],
               "completion": "2", "reward": 1.0}  # fmt: skip
    (found,) = read("trl", lines(tmp_path / "a.jsonl", several))
    assert "several messages" in found


def test_what_cannot_be_read_is_told_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"prompt_ids": [1]}\n'))
    with pytest.raises(ValueError, match=r"a\.jsonl\.gz:1: no rollout of trl"):
        read("trl", tmp_path / "a.jsonl.gz")
    (tmp_path / "a.jsonl").write_text("\n[1]\n")
    with pytest.raises(ValueError, match=r"a\.jsonl:2: no JSON object"):
        read("trl", tmp_path / "a.jsonl")
    (tmp_path / "a.parquet").write_text("x")
    with pytest.raises(ValueError, match=r"a\.parquet"):
        read("trl", tmp_path / "a.parquet")
