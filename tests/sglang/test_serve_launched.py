"""`unmask-server serve --sglang-launch MODEL`."""

from __future__ import annotations

import signal
from pathlib import Path

import psutil
import pytest
from unmask.v1 import catalog_pb2, trajectory_pb2
from unmask_server.config import Settings
from unmask_server.launched import LaunchedModels

from tests.collected import collected
from tests.e2e.processes import server_process
from tests.sglang.real import PYTHON, SMALL
from tests.sglang.test_launch import gone


def test_a_launch_is_a_model_directory_and_arguments(tmp_path: Path) -> None:
    LaunchedModels(Settings(sglang_launch=[f"'{tmp_path}' --tp 2"]))
    with pytest.raises(ValueError, match="no model directory"):
        LaunchedModels(Settings(sglang_launch=["no/such/model"]))
    with pytest.raises(ValueError, match="no model directory"):
        LaunchedModels(Settings(sglang_launch=[""]))
    with pytest.raises(ValueError, match="launched twice"):
        LaunchedModels(Settings(sglang_launch=[f"{tmp_path}", f"{tmp_path}/. --tp 2"]))


def test_launches_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNMASK_SGLANG_LAUNCH", "a --tp 2; b")
    assert Settings().sglang_launch == ["a --tp 2", "b"]


async def test_what_is_not_launched_has_no_endpoints(tmp_path: Path) -> None:
    launched = LaunchedModels(Settings())
    assert await launched.endpoints(str(tmp_path)) == ()
    assert await launched.endpoints("") == ()


async def test_a_program_that_is_missing_is_told(tmp_path: Path) -> None:
    settings = Settings(sglang_launch=[str(tmp_path)], sglang_command="no-such-program -m sglang")
    launched = LaunchedModels(settings)
    with pytest.raises(ValueError, match="there is no program 'no-such-program'"):
        launched.start()
    await launched.close()


@pytest.mark.sglang
async def test_a_server_runs_its_models_on_its_own_sglang(
    tmp_path: Path, tiny_models: dict[str, Path]
) -> None:
    model = tiny_models["padded"]
    flags = [
        *("--sglang-launch", f"{model} {' '.join(SMALL)}"),
        *("--sglang-command", f"{PYTHON} -m sglang_cpu"),
    ]
    url = f"sqlite:///{tmp_path}/unmask.db"
    async with server_process(url, tmp_path / "a.sock", flags=flags) as (stubs, process):
        registered = await stubs.catalog.RegisterPolicy(
            catalog_pb2.RegisterPolicyRequest(model=str(model), name="student", max_new_tokens=8)
        )
        assert registered.policy.model.endpoints[0].startswith("http://127.0.0.1:")
        assert registered.policy.model.serving.engine_version.startswith("0.5.")
        questions = catalog_pb2.RegisterQuestionsRequest(
            questions=[
                catalog_pb2.QuestionSpec(name="one", fields={"question": "q : 1", "answer": "1"})
            ]
        )
        await stubs.catalog.RegisterQuestions(questions)
        sampled = await collected(
            stubs.trajectory.SampleTrajectories(
                trajectory_pb2.SampleTrajectoriesRequest(
                    policy="student", questions=["one"], count=4
                )
            )
        )
        assert len(sampled.trajectories) == 4
        children = psutil.Process(process.pid).children(recursive=True)
        assert any("scheduler" in child.name() for child in children)
        process.send_signal(signal.SIGKILL)
        assert await gone(children)
    # Started again: another port, the same model.
    async with server_process(url, tmp_path / "b.sock", flags=flags) as (stubs, process):
        sampled = await collected(
            stubs.trajectory.SampleTrajectories(
                trajectory_pb2.SampleTrajectoriesRequest(
                    policy="student", questions=["one"], count=8
                )
            )
        )
        assert len(sampled.trajectories) == 8
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        assert await gone(children)
