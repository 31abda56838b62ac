"""The commands and the client against a real server, with tiny random models."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import unmask
from typer.testing import CliRunner
from unmask.cli.main import app
from unmask.v1 import diagnosis_pb2

SAMPLING = ("--max-new-tokens", "8", "--stop-text", ".", "--stop-text", "so")


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("database") / "unmask.db"


@pytest.fixture(scope="module")
def address(database: Path) -> Iterator[str]:
    """An embedded server: a child process, as users get it."""
    with unmask.serve(database, threads=1) as server:
        yield server.address


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[unmask.Client]:
    with unmask.Client(address) as client:
        yield client


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("questions") / "q.jsonl"
    rows = [
        {"question": "q 1 2", "answer": "3", "solution": "1 2 so #### 3"},
        {"question": "q 2 2", "answer": "1", "solution": "2 2 so #### 1"},
        {"question": "which ?", "answer": "none"},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def run(address: str, *arguments: str | Path, code: int = 0) -> str:
    result = CliRunner().invoke(
        app, [*map(str, arguments), "--server", address], env={"COLUMNS": "80"}
    )
    assert result.exit_code == code, result.output
    assert "\x1b" not in result.output
    assert max(map(len, result.stdout.splitlines()), default=0) <= 80
    return result.output


def test_diagnose_answers_and_a_second_run_pays_nothing(
    address: str, client: unmask.Client, models: Path, questions: Path, tmp_path: Path
) -> None:
    arguments = (
        "diagnose", questions, "--student", models / "student", "--teacher",
        f"big={models / 'teacher'}", "--context", "answer", "--loss", "reverse_kl", "--loss",
        "opd", "--samples", "6", "--rollouts-per-node", "24", "--json", tmp_path / "all.json",
        *SAMPLING,
    )  # fmt: skip
    output = run(address, *arguments)
    for heading in ("Asked", "Where the teachers push", "Cost"):
        assert heading in output
    assert "q.jsonl:3:" in output
    for push in ("big · reverse_kl", "self+answer · reverse_kl:sampled"):
        assert push in output
    found = json.loads((tmp_path / "all.json").read_text())
    assert [teacher["label"] for teacher in found["teachers"]] == ["big", "self+answer"]
    assert len(found["summaries"]) == 4
    assert len(found["trajectories"]) == 12
    assert found["cost"]["rollouts_sampled"] > 0
    assert found["sampled_trajectories"] == 12
    for example in found["examples"]:
        positions = [position["node"].get("position", 0) for position in example["positions"]]
        assert positions == list(range(len(positions)))

    before = client.statistics()
    again = run(address, *arguments)
    after = client.statistics()
    assert after == before
    assert "0 sampled, 12 from the cache" in again
    repeated = json.loads((tmp_path / "all.json").read_text())
    assert repeated["cost"]["rollouts_sampled"] == 0
    assert repeated["summaries"] == found["summaries"]


def test_step_by_step(address: str, client: unmask.Client, models: Path, questions: Path) -> None:
    run(address, "policy", "register", models / "student", "--name", "student", "--temperature",
        "0.8", *SAMPLING)  # fmt: skip
    run(address, "teacher", "register", models / "teacher", "--name", "strong", "--policy",
        "student", "--context", "answer")  # fmt: skip
    run(address, "teacher", "register", "--base", "student", "--name", "shown", "--context",
        "solution")  # fmt: skip
    registered = run(address, "question", "register", questions, code=2)
    assert "q.jsonl:3:" in registered
    assert "student" in run(address, "policy", "list")
    assert "solution" in run(address, "teacher", "list")
    assert "q 1 2" in run(address, "question", "list")
    first = next(client.list_questions()).id
    assert "1 2 so #### 3" in run(address, "preview", first, "--teacher", "shown")
    assert "1 2 so #### 3" not in run(address, "preview", first, "--policy", "student")
    assert "2 of 2 sampled now" in run(address, "sample", first, "--policy", "student", "-n", "2")
    assert "0 of 2 sampled now" in run(address, "sample", first, "--policy", "student", "-n", "2")
    trajectory = next(client.list_trajectories(policy="student"))
    assert trajectory.id in run(address, "trajectory", "list", "--policy", "student")
    assert trajectory.text.split()[0] in run(address, "trajectory", "show", trajectory.id)
    grown = run(address, "grow", trajectory.id, "--rollouts", "60", "--teacher", "strong")
    assert "succeeded" in grown
    teachers = ("--teacher", "strong", "--teacher", "shown")
    aligned = run(address, "align", trajectory.id, "-p", "0", *teachers, "--loss", "jsd:0.3")
    assert "jsd:0.3" in aligned
    assert "shown" in aligned
    assert "←" in run(address, "node", trajectory.id, "-p", "0")
    assert "|g|" in run(address, "node", trajectory.id, "-p", "0", "--gradient")
    viewed = run(address, "view", trajectory.id, *teachers, "--table")
    assert "strong · reverse_kl" in viewed
    assert "advantage" in run(address, "summary", "--policy", "student", *teachers)
    assert "rollouts" in run(address, "stats")


def test_controls_and_a_teacher_from_a_file_step_by_step(
    address: str, client: unmask.Client, models: Path, tmp_path: Path
) -> None:
    run(address, "policy", "register", models / "student", "--name", "pupil", "--temperature",
        "0.9", *SAMPLING)  # fmt: skip
    run(address, "teacher", "register", "--base", "pupil", "--name", "told", "--context", "hint")
    run(address, "teacher", "register", "--base", "pupil", "--name", "flatter", "--control",
        "flattened")  # fmt: skip
    filed = run(address, "teacher", "register", "--stored", "some API", "--policy", "pupil",
                "--name", "filed")  # fmt: skip
    assert "some API" in filed
    for base in ("told", "filed"):
        run(address, "teacher", "register", "--base", base, "--control", "permuted",
            "--name", f"{base}-permuted")  # fmt: skip
    listed = run(address, "teacher", "list")
    assert "some API" in listed
    assert "permuted" in listed
    assert "give a MODEL, --base or --stored" in run(address, "teacher", "register", code=2)

    (result,) = client.register_questions([{"question": "q 3 1", "answer": 4, "hint": "3 1"}])
    found = client.sample_trajectories("pupil", result.question, count=8).trajectories
    trajectory = max(found, key=lambda one: one.length)
    assert trajectory.length > 1
    file = tmp_path / "filed.jsonl"
    rows = [
        {"trajectory": trajectory.id, "position": 0, "ids": [1, 2], "logprobs": [-0.2, -2.0]},
        {"question": result.question.id, "prefix": [3] * 7, "ids": [3], "logprobs": [-0.1]},
    ]
    file.write_text("\n\n".join(map(json.dumps, rows)) + "\n")
    assert "2" in run(address, "teacher", "load", "filed", file)
    assert client.put_teacher_distributions("filed", rows).known == 2
    assert client.put_teacher_distributions("filed", file).known == 2
    file.write_text(json.dumps(rows[0]) + "\n" + json.dumps({**rows[1], "logprobs": [0.1]}))
    refused = run(address, "teacher", "load", "filed", file, code=2)
    assert refused.startswith("error: jsonl[line 2].logprobs[0]: ")

    names = ("told", "flatter", "told-permuted", "filed", "filed-permuted")
    teachers = [part for name in names for part in ("--teacher", name)]
    run(address, "grow", trajectory.id, "--rollouts", "200", *teachers)
    viewed = run(address, "view", trajectory.id, *teachers, "--table")
    for name in names:
        assert f"{name} · reverse_kl" in viewed
    assert "nothing is stored of the teacher here" in run(
        address, "view", trajectory.id, "--teacher", "filed"
    )
    summary = run(address, "summary", trajectory.id, *teachers)
    assert "not covered" in summary
    found = client.summarize(trajectory, teachers=names)
    assert [row.not_covered for row in found.summaries] == [0, 0, 0, *2 * [trajectory.length - 1]]
    assert len(found.comparisons) == 10


def test_objectives_by_commands(address: str, client: unmask.Client, models: Path) -> None:
    run(address, "policy", "register", models / "student", "--name", "aimed", "--max-new-tokens",
        "6")  # fmt: skip
    master = client.register_teacher(models / "teacher", policies="aimed").teacher.id
    shown = run(address, "verifier", "register", "length", "--name", "long", "--option", "limit=4")
    assert "length" in shown
    run(address, "verifier", "register", "objective", "--name", "both", "--option",
        "last_number=1", "--option", "long=-0.1")  # fmt: skip
    assert "=-0.1" in run(address, "verifier", "list")
    (result,) = client.register_questions([{"question": "q 1 3", "answer": "3"}])
    sampled = client.sample_trajectories("aimed", result.question, count=3, seed=1)
    generation = max(sampled.trajectories, key=lambda t: t.length).id
    run(address, "grow", generation, "--rollouts", "300", "--teacher", master, "--objective",
        "own=1,long=-0.1")  # fmt: skip
    before = client.statistics().rollouts
    told = run(address, "objectives", generation, "-o", "own", "-o", "long=1", "-o", "long=-1",
               "-o", "both", "--teacher", master)  # fmt: skip
    assert "Where they disagree" in told
    for objective in ("own", "long=1", "long=-1", "both"):
        assert objective in told.splitlines()
    for command in ("summary", "view", "align", "node"):
        place = ("-p", "0") if command in ("align", "node") else ()
        by_sum = run(address, command, generation, *place, "--teacher", master, "--objective",
                     "own=1,long=-0.1")  # fmt: skip
        by_name = run(address, command, generation, *place, "--teacher", master, "--verifier",
                      "both")  # fmt: skip
        assert by_sum == by_name
    assert client.statistics().rollouts == before
    refused = run(address, "node", generation, "-p", "0", "--objective", "own", code=2)
    assert refused.startswith("error: objective: ")
    number = client.register_verifier("external", name="score", options={"source": "x"})
    rollouts = list(client.list_rollouts("aimed", result.question, missing_outcome_of=number))
    assert len(rollouts) > 100
    assert client.put_outcomes(number, {r.id: r.length / 6 for r in rollouts}) == len(rollouts)
    assert not list(client.list_rollouts("aimed", result.question, missing_outcome_of=number))


def test_mistakes_name_the_field(address: str, client: unmask.Client, models: Path) -> None:
    refused = run(address, "policy", "register", models / "student", "--temperature", "0", code=2)
    assert refused.startswith("error: sampling.temperature: ")
    assert refused.count("\n") == 1
    with pytest.raises(unmask.InvalidArgumentError) as caught:
        client.register_policy(models / "student", top_p=2.0)
    assert [violation.field for violation in caught.value.violations] == ["sampling.top_p"]
    assert caught.value.reason == "INVALID_FIELD"
    with pytest.raises(unmask.NotFoundError):
        client.get_trajectory("trj-none")
    with pytest.raises(unmask.FailedPreconditionError):
        client.register_teacher(
            models / "other",
            policies=client.register_policy(models / "student", max_new_tokens=4).policy,
        )


async def test_the_asyncio_client_on_the_real_server(address: str, models: Path) -> None:
    async with unmask.AsyncClient(address) as client:
        policy = (await client.register_policy(models / "student", max_new_tokens=5)).policy
        (result,) = await client.register_questions([{"question": "q 0", "answer": 1}])
        sampled = await client.sample_trajectories(policy, result.question, count=2, seed=3)
        trajectory = sampled.trajectories[0]
        handle = await client.grow(trajectory, rollouts=30)
        growth = await handle.wait()
        assert growth.rollouts_sampled == 30
        answers = [
            answer
            async for answer in client.trajectory_alignments(trajectory, algorithms="dr_grpo")
        ]
        assert len(answers) == trajectory.length
        for answer in answers:
            (alignment,) = answer.alignments
            # Expected Dr. GRPO is the ideal gradient itself.
            if alignment.status == diagnosis_pb2.ALIGNMENT_STATUS_OK:
                assert alignment.cosine.median == pytest.approx(1.0)


def test_the_embedded_server_is_found_by_whoever_wants_the_same_database(
    database: Path, address: str
) -> None:
    with unmask.local(database) as other:
        assert other.address == address
        other.statistics()
    with unmask.Client(address) as client:
        client.wait_ready(10)


def test_the_embedded_server_ends_with_its_client(tmp_path: Path) -> None:
    server = unmask.serve(tmp_path / "own.db")
    assert server.process is not None
    with unmask.Client(server.address) as client:
        assert client.statistics().rollouts == 0
    server.close()
    assert server.process.poll() == 0
    with unmask.Client(server.address, timeout=0.2) as client, pytest.raises(unmask.UnmaskError):
        client.statistics()


def test_the_embedded_server_ends_when_its_parent_dies(tmp_path: Path) -> None:
    code = (
        "import os, unmask; server = unmask.serve('own.db'); "
        "print(server.process.pid, flush=True); os._exit(1)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(int(done.stdout)).wait(30)


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "broken.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(RuntimeError, match=r"did not start[\s\S]*not a database"):
        unmask.serve(tmp_path / "broken.db")


SHIPPED = Path(__file__).parents[2] / "examples"


@pytest.mark.slow
@pytest.mark.skipif(
    not (SHIPPED / "models" / "student").is_dir(), reason="the models have not been trained"
)
def test_diagnose_on_the_models_that_ship(address: str, tmp_path: Path) -> None:
    output = run(
        address, "diagnose", SHIPPED / "word_problems" / "questions.jsonl", "--student",
        SHIPPED / "models" / "student", "--context", "none", "--context", "solution",
        "--temperature", "0.7", "--max-new-tokens", "80", "--max-questions", "6",
        "--rollouts-per-node", "32", "--json", tmp_path / "all.json",
    )  # fmt: skip
    found = json.loads((tmp_path / "all.json").read_text())
    correct = [trajectory.get("reward", 0) > 0.5 for trajectory in found["trajectories"]]
    assert any(correct)
    assert not all(correct)
    blind, shown = found["summaries"]
    assert blind["label"] == "self+none · reverse_kl"
    assert blind["no_signal"] == blind["nodes"]  # it is the student itself
    assert "self+none · reverse_kl: no score." in output
    assert shown["scored"] > 0
    assert len(found["examples"]) == 2


@pytest.mark.slow
def test_findings_are_examined_and_a_second_run_pays_nothing(
    address: str, client: unmask.Client, models: Path, tmp_path: Path
) -> None:
    file = tmp_path / "tasks.jsonl"
    rows = [
        {"task": task, "question": f"q {i} 2", "answer": "3", "wrong_solution": "2 so #### 1"}
        for task in ("easy", "hard")
        for i in (1, 2)[: 2 if task == "easy" else 1]
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def examine(name: str) -> dict:
        arguments = (
            "findings", file, "--student", f"s={models / 'student'}",
            "--teacher", f"big={models / 'teacher'}", "--context", "none", "--context", "answer",
            "--samples", "2", "--max-rollouts", "60",
            "--methods-on", "1", "--out", tmp_path / f"{name}.md",
            "--json", tmp_path / f"{name}.json", *SAMPLING,
        )  # fmt: skip
        output = run(address, *arguments)
        assert "Stronger teachers are better" in output
        return json.loads((tmp_path / f"{name}.json").read_text())

    first = examine("first")
    rollouts = client.statistics().rollouts_sampled
    second = examine("second")
    assert second == first
    assert client.statistics().rollouts_sampled == rollouts
    assert [cell["task"] for cell in first["cells"]] == ["easy", "hard"]
    assert len(first["findings"]) == 8
    verdicts = {"supported", "contradicted", "undecided at this budget"}
    assert {finding["verdict"] for finding in first["findings"]} <= verdicts
    (silent,) = [f for f in first["findings"] if "without a useful context" in f["claim"]]
    assert all(
        row["no signal"] == "100%" for row in silent["rows"] if row["teacher"] == "self+none"
    )
    text = (tmp_path / "first.md").read_text()
    assert text.count("## ") == 8
    assert "beyond matched" in text
