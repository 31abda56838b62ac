"""`unmask export` and `unmask import` against a real server: folders, and trainers' files."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import unmask
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner
from unmask.cli.main import app
from unmask.sharing import export_to, exporting, import_from
from unmask.sharing.files import read_rows
from unmask.v1 import catalog_pb2, sharing_pb2, trajectory_pb2

from tests.collected import collected
from tests.e2e.conftest import MAX_NEW_TOKENS, World, fill, serving
from tests.e2e.test_main_job import sampling_of, statistics
from tests.e2e.test_sharing import assert_sound, counts, exported, grown, rollouts_of
from tests.tiny import WORDS

pytestmark = pytest.mark.slow

VOCAB = len(WORDS)


@pytest.fixture
async def other(tmp_path: Path, models: Path) -> AsyncIterator[World]:
    """A second server with the same models and questions."""
    async with serving(f"sqlite:///{tmp_path}/other.db", tmp_path / "b") as other:
        await fill(other, models)
        yield other


async def run(world: World, *arguments: str | Path, code: int = 0) -> str:
    """The command in another thread: the server is in this one."""

    def invoke() -> Any:
        return CliRunner().invoke(
            app, [*map(str, arguments), "--server", world.address], env={"COLUMNS": "100"}
        )

    result = await asyncio.to_thread(invoke)
    assert result.exit_code == code, result.output
    # Without the layout of tables.
    return " ".join(result.output.split())


def rows_of(folder: Path, table: str) -> list[dict[str, Any]]:
    files = sorted(folder.glob(f"{table}-*"))
    return [row for file in files for _, row in read_rows(file)]


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
async def test_a_folder_goes_from_one_cache_to_another(
    world: World, other: World, tmp_path: Path, format: str
) -> None:
    await grown(world)
    folder = tmp_path / "out"
    await run(world, "export", folder, "--format", format)
    told = await run(other, "import", folder)
    before = await statistics(world)
    assert f"rollouts added {before.rollouts}" in told
    assert (await statistics(other)).rollouts == before.rollouts
    assert rollouts_of(await exported(other)) == rollouts_of(await exported(world))
    assert await counts(other) == await counts(world)
    assert_sound(other)
    again = await run(other, "import", folder)
    assert f"rollouts known {before.rollouts}" in again
    assert "added" not in again
    # An export that is complete is left as it is.
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    await run(world, "export", folder, "--format", format)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == files
    assert "another export" in await run(
        world, "export", folder, "--format", format, "--policy", "student", code=2
    )


async def test_both_formats_hold_the_same(world: World, tmp_path: Path) -> None:
    await grown(world)
    kinds = [x for kind in ("rollouts", "trajectories", "distributions", "estimates")
             for x in ("--only", kind)] + ["--teacher", "teacher"]  # fmt: skip
    await run(world, "export", tmp_path / "warm", *kinds)
    for format in ("jsonl", "parquet"):
        await run(world, "export", tmp_path / format, "--format", format, *kinds)
    for table in ("verifiers", "policies", "questions", "teachers", "rollouts", "trajectories",
                  "distributions", "estimates"):  # fmt: skip
        one, two = rows_of(tmp_path / "jsonl", table), rows_of(tmp_path / "parquet", table)
        assert one
        for row in two:
            for name in ("outcomes", "teachers"):
                if name in row:
                    row[name] = dict(row[name])
        if table == "distributions":
            for row in (*one, *two):
                row["logprobs"] = torch.tensor(row["logprobs"], dtype=torch.float32).tolist()
        assert one == two
    # Everything that a table of estimates needs to be read alone.
    (first, *_), nodes = one, {(row["trajectory_id"], row["position"]) for row in one}
    assert len(nodes) > 2
    assert first["probability"] > 0
    assert len(first["teachers"]) == 1
    assert first["success_low"] <= first["success_median"] <= first["success_high"]


class Cut(unmask.Client):
    """Loses its connection after some parts."""

    left = 4

    def export_cache(  # type: ignore[override]
        self, *args: Any, **kwargs: Any
    ) -> Iterator[sharing_pb2.ExportCacheResponse]:
        for part in super().export_cache(*args, **kwargs):
            if not self.left:
                raise OSError("cut off")
            self.left -= 1
            yield part


async def test_an_export_that_was_cut_off_is_continued(
    world: World, other: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await grown(world)
    monkeypatch.setattr("unmask_server.api.sharing.PART_BYTES", 2000)
    monkeypatch.setattr(exporting, "PART_BYTES", 1)
    folder, tries = tmp_path / "out", 0

    def cut() -> None:
        with Cut(world.address) as client:
            export_to(client, folder, format="parquet")

    while True:
        try:
            await asyncio.to_thread(cut)
            break
        except OSError:
            tries += 1
            # What is listed can be taken in as it is.
            with unmask.Client(other.address) as client:
                done = await asyncio.to_thread(import_from, client, folder)
            assert not done.complete
    assert tries > 2
    rows = rows_of(folder, "rollouts")
    assert len(rows) == len({row["id"] for row in rows}) == (await statistics(world)).rollouts
    assert len(list(folder.glob("rollouts-*"))) > 2
    await run(other, "import", folder)
    assert rollouts_of(await exported(other)) == rollouts_of(await exported(world))


async def test_folders_that_are_none_are_refused(world: World, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    assert "holds no export" in await run(world, "export", tmp_path / "full", code=2)
    assert "export.json" in await run(world, "import", tmp_path / "full", code=2)
    (tmp_path / "full" / "export.json").write_text("{}")
    assert "no manifest" in await run(world, "import", tmp_path / "full", code=2)
    assert "--only" in await run(world, "export", tmp_path / "new", "--only", "all", code=2)


# ------------------------------------------------------------------------------------- trainers


async def prompts(world: World) -> dict[str, tuple[list[int], str]]:
    """By name of a question: its prompt's tokens and text."""
    found = {}
    for question in world.questions:
        asked = catalog_pb2.PreviewPromptRequest(policy="student", question=question)
        prompt = (await world.stubs.catalog.PreviewPrompt(asked)).policy
        found[question] = (list(prompt.tokens), prompt.text)
    return found


class Dump:
    """Generations of the student, with what a trainer's engine says of them."""

    def __init__(self, models: Path, prompts: dict[str, tuple[list[int], str]]) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(models / "student", dtype=torch.float32)
        self.prompts = prompts
        self.rows: list[tuple[str, list[int], list[float], bool]] = []

    def add(self, question: str, tokens: list[int]) -> None:
        prompt = self.prompts[question][0]
        with torch.no_grad():
            logits = self._model(torch.tensor([prompt + tokens])).logits[0]
        said = torch.log_softmax(logits[len(prompt) - 1 : -1, :VOCAB].double(), dim=-1)
        logprobs = said[range(len(tokens)), tokens].tolist()
        self.rows.append((question, tokens, logprobs, tokens[-1] == 0))

    def verl(self) -> list[dict[str, Any]]:
        return [
            {"prompt_ids": self.prompts[q][0], "response_ids": tokens, "step": 3,
             "score": float(tokens[0] % 2), "rollout_log_probs": logprobs}
            for q, tokens, logprobs, _ in self.rows
        ]  # fmt: skip

    def slime(self) -> list[dict[str, Any]]:
        return [
            {"tokens": self.prompts[q][0] + tokens, "response_length": len(tokens), "prompt": "",
             "response": "", "status": "completed" if stopped else "truncated", "index": i,
             "reward": float(tokens[0] % 2), "rollout_log_probs": logprobs,
             "weight_versions": ["4"], "loss_mask": [1] * len(tokens)}
            for i, (q, tokens, logprobs, stopped) in enumerate(self.rows)
        ]  # fmt: skip

    def trl(self) -> list[dict[str, Any]]:
        return [
            {"prompt_ids": self.prompts[q][0], "completion_ids": tokens,
             "logprobs": [[value] for value in logprobs], "reward": float(tokens[0] % 2)}
            for q, tokens, logprobs, _ in self.rows
        ]  # fmt: skip

    def text(self) -> list[dict[str, Any]]:
        """As verl writes it by itself: without special tokens."""
        return [
            {"input": self.prompts[q][1], "step": 3, "score": 1.0,
             "output": " ".join(WORDS[token] for token in tokens if token)}
            for q, tokens, _, _ in self.rows
        ]  # fmt: skip


@pytest.fixture
async def dump(world: World, models: Path) -> Dump:
    """300 generations: 150 of each question."""
    made = Dump(models, await prompts(world))
    for question in world.questions:
        request = sampling_of(world, questions=[question], count=150)
        for found in (
            await collected(world.stubs.trajectory.SampleTrajectories(request))
        ).trajectories:
            made.add(question, [token.id for token in found.tokens])
    return made


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def declared(*more: str) -> tuple[str, ...]:
    return ("--policy", "student", "--temperature", "1", "--max-new-tokens",
            str(MAX_NEW_TOKENS), *more)  # fmt: skip


@pytest.mark.parametrize("trainer", ["verl", "slime", "trl"])
async def test_a_trainers_rollouts_are_free_rollouts_of_their_policy(
    world: World, other: World, dump: Dump, tmp_path: Path, trainer: str
) -> None:
    file = write(tmp_path / "dump.jsonl", getattr(dump, trainer)())
    told = await run(other, "import", file, "--from", trainer, *declared())
    assert "nats from the policy's" in told
    now = await statistics(other)
    assert (now.rollouts, now.rollouts_sampled) == (len(dump.rows), 0)
    assert_sound(other)
    # The very counts of the server that sampled them.
    assert await counts(other) == await counts(world)
    assert "added 0 known 300" in await run(other, "import", file, "--from", trainer, *declared())
    assert (await statistics(other)).rollouts == len(dump.rows)


async def test_a_longer_file_of_the_same_run_adds_what_is_new(
    other: World, dump: Dump, tmp_path: Path
) -> None:
    rows = dump.verl()
    for count in (100, 300):
        file = write(tmp_path / f"{count}.jsonl", rows[:count])
        await run(other, "import", file, "--from", "verl", *declared("--run", "r"))
    assert (await statistics(other)).rollouts == 300


async def test_rewards_are_kept_if_that_is_asked_for(
    other: World, dump: Dump, tmp_path: Path
) -> None:
    file = tmp_path / "rollout_1.json"
    rows = dump.slime()
    for row in rows:
        row["reward"] = {"math": row["reward"] * 2 - 1, "other": None}
    # One that was cut off in between, and one with a tool's words in it.
    rows[0]["status"] = "aborted"
    rows[1]["loss_mask"] = [0, *rows[1]["loss_mask"][1:]]
    rows[2]["weight_versions"] = ["4", "5"]
    file.write_text(json.dumps({"rollout_id": 1, "samples": rows}))
    await run(other, "verifier", "register", "external", "--name", "theirs", "--option", "source=s")
    told = await run(
        other, "import", file, "--from", "slime",
        *declared("--rewards", "theirs", "--reward", "math", "--reward-range", "-1", "1"),
    )  # fmt: skip
    assert told.count("left out") == 3
    listed = rollouts_of(await exported(other)).values()
    (verifier,) = (
        found.id
        for part in await exported(other)
        for found in part.records.verifiers
        if found.name == "theirs"
    )
    assert len(listed) == 297
    for one in listed:
        given = {outcome.verifier_id: outcome.reward for outcome in one.outcomes}
        assert len(given) == 2
        assert given[verifier] == one.tokens[0] % 2
    assert_sound(other)
    # Other rewards for the same are refused.
    for row in rows:
        row["reward"]["math"] = 0.0
    file.write_text(json.dumps({"rollout_id": 1, "samples": rows}))
    options = declared("--rewards", "theirs", "--reward", "math")
    await run(other, "import", file, "--from", "slime", *options, "--run", "r")
    for row in rows:
        row["reward"]["math"] = 1.0
    file.write_text(json.dumps({"rollout_id": 1, "samples": rows}))
    assert "other rewards" in await run(
        other, "import", file, "--from", "slime", *options, "--run", "r", code=2
    )


async def test_texts_are_taken_only_if_that_is_allowed(
    other: World, dump: Dump, tmp_path: Path
) -> None:
    file = write(tmp_path / "3.jsonl", [row for row in dump.text() if row["output"]])
    refusal = await run(other, "import", file, "--from", "verl", *declared(), code=2)
    assert "allow_text" in refusal
    told = await run(other, "import", file, "--from", "verl", *declared("--allow-text"))
    assert "surprise" in told
    assert_sound(other)


async def test_what_is_not_the_policys_is_refused(
    world: World, other: World, models: Path, dump: Dump, tmp_path: Path
) -> None:
    rows = dump.verl()

    async def refusal(changed: list[dict[str, Any]], *options: str) -> str:
        file = write(tmp_path / "changed.jsonl", changed)
        said = await run(other, "import", file, "--from", "verl", *(options or declared()), code=2)
        assert (await statistics(other)).rollouts == 0
        return said

    # Other settings.
    for option, value in (("--temperature", "0.7"), ("--max-new-tokens", "5"), ("--top-p", "0.9")):
        said = await refusal(rows, *declared(option, value))
        assert "register a policy with the trainer's settings" in said
    # Another prompt, or none that is known.
    said = await refusal([{**row, "prompt_ids": row["prompt_ids"][1:]} for row in rows])
    assert "no question" in said
    # An end that nobody knows.
    short = [row for row in rows if len(row["response_ids"]) > 2]
    said = await refusal([{**short[0], "response_ids": short[0]["response_ids"][:2],
                           "rollout_log_probs": []}])  # fmt: skip
    assert "how the generation ended" in said
    # Ids without a token.
    said = await refusal([{**rows[0], "response_ids": [VOCAB]}])
    assert f"token id {VOCAB}" in said
    # Log-probabilities that another checkpoint gave.
    worse = [{**row, "rollout_log_probs": [v - 0.2 for v in row["rollout_log_probs"]]}
             for row in rows]  # fmt: skip
    assert "fingerprint does not fit" in await refusal(worse)
    # Tokens that another checkpoint gave, without a word of their probabilities.
    await world.stubs.catalog.RegisterPolicy(
        catalog_pb2.RegisterPolicyRequest(
            name="next", model=str(models / "teacher"), max_new_tokens=MAX_NEW_TOKENS
        )
    )
    request = trajectory_pb2.SampleTrajectoriesRequest(
        policy="next", questions=["one"], count=150, seed=1
    )
    foreign = (await collected(world.stubs.trajectory.SampleTrajectories(request))).trajectories
    said = await refusal(
        [{"input": dump.prompts["one"][1], "score": 1.0,
          "response_ids": [token.id for token in one.tokens]} for one in foreign]
    )  # fmt: skip
    assert "fingerprint does not fit" in said
    assert "less likely" in said
    # What cannot be read.
    assert "no JSON" in await refusal_of(other, tmp_path, "{")
    assert "no rollout of verl" in await refusal_of(other, tmp_path, '{"input": "q"}')
    assert "--policy" in await run(other, "import", tmp_path, "--from", "verl", code=2)


async def refusal_of(world: World, folder: Path, text: str) -> str:
    (folder / "odd.jsonl").write_text(text)
    return await run(world, "import", folder / "odd.jsonl", "--from", "verl", *declared(), code=2)
