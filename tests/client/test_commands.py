"""Commands against scripted answers: what they ask for, and how they fail."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
import unmask
from google.rpc import code_pb2, error_details_pb2
from typer.testing import CliRunner
from unmask.cli.main import app
from unmask.v1 import catalog_pb2, diagnosis_pb2, growth_pb2, trajectory_pb2

from tests.client.making import alignment, answers, interval
from tests.client.scripted import ScriptedServer
from tests.client.test_errors import failing


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("UNMASK_ADDRESS", raising=False)


def run(server: ScriptedServer | None, *arguments: str) -> Any:
    where = ["--server", server.address] if server else []
    return CliRunner().invoke(app, [*arguments, *where])


def test_a_policy_is_registered_as_the_options_say(server: ScriptedServer, tmp_path: Path) -> None:
    (tmp_path / "student").mkdir()
    (tmp_path / "prompt.jinja").write_text("Q: {{ content }}\nA:")
    server.answer(
        "RegisterPolicy",
        catalog_pb2.RegisterPolicyResponse(
            policy=catalog_pb2.Policy(id="pol-1", name="s"), warnings=["no BOS"]
        ),
    )
    done = run(server, "policy", "register", "student", "--name", "s", "--temperature", "0.7",
               "--stop-text", "\\n", "--prompt-template", "prompt.jinja")  # fmt: skip
    assert done.exit_code == 0
    assert "pol-1" in done.stdout
    assert done.stderr == "warning: no BOS\n"
    (request,) = server.requests("RegisterPolicy")
    assert request.model == str(tmp_path / "student")
    assert list(request.stop_texts) == ["\n"]
    assert request.prompting.template == "Q: {{ content }}\nA:"


@pytest.mark.parametrize(
    ("arguments", "method", "error", "message"),
    [
        (
            ["policy", "register", "m", "--top-p", "0"],
            "RegisterPolicy",
            (code_pb2.INVALID_ARGUMENT, "sampling.top_p: 0.0 is not in (0, 1]"),
            "error: sampling.top_p: 0.0 is not in (0, 1]\n",
        ),
        (
            ["trajectory", "show", "trj-9"],
            "GetTrajectory",
            (code_pb2.NOT_FOUND, "no trajectory trj-9"),
            "error: no trajectory trj-9\n",
        ),
        (
            ["stats"],
            "GetStatistics",
            (code_pb2.INTERNAL, "an unforeseen error"),
            "error: INTERNAL: an unforeseen error\n",
        ),
    ],
)
def test_errors_of_the_server_are_one_line_and_status_2(
    server: ScriptedServer, arguments: list[str], method: str, error: Any, message: str
) -> None:
    server.answer(method, failing(*error))
    done = run(server, *arguments)
    assert (done.exit_code, done.stdout, done.stderr) == (2, "", message)


def test_a_violation_that_the_message_does_not_name_is_added(server: ScriptedServer) -> None:
    violation = error_details_pb2.BadRequest.FieldViolation(field="count", description="too many")
    server.answer(
        "GetTrajectory",
        failing(
            code_pb2.INVALID_ARGUMENT,
            "bad\nrequest",
            error_details_pb2.BadRequest(field_violations=[violation]),
        ),
    )
    assert run(server, "trajectory", "show", "t").stderr == "error: bad request; count: too many\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["align", "trj-1"], "position: say which token"),
        (["align", "trj-1", "-p", "0", "--loss", "kl"], "no loss is called 'kl'"),
        (["node", "--policy", "p"], "give trajectory and position, or policy and question"),
        (
            ["node", "--policy", "p", "--question", "q", "--prefix-tokens", "1,x"],
            "'1,x' is no list",
        ),
        (["grow"], "TRAJECTORY: give at least one"),
        (["grow", "trj-1", "trj-2", "-p", "3"], "--position: goes with exactly one trajectory"),
        (["grow", "trj-1", "--statistic", "ranking"], "half_width: say how precise"),
        (["summary"], "TRAJECTORY: give at least one"),
        (["stats", "--database", "x.db"], "--database: not together with --server"),
        (["trajectory", "submit", "--policy", "p", "--question", "q"], "give tokens or text"),
    ],
)
def test_mistakes_are_named_before_anything_is_sent(
    server: ScriptedServer, arguments: list[str], message: str
) -> None:
    done = run(server, *arguments)
    assert done.exit_code == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert server.seen == []


def test_nobody_there_is_said_with_the_address(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/none.sock"
    done = subprocess.run(
        [sys.executable, "-m", "unmask", "stats", "--server", address],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: no server answers at {address}")
    assert "Traceback" not in done.stderr


def test_the_address_comes_from_the_environment(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNMASK_ADDRESS", server.address)
    server.answer("ListPolicies", catalog_pb2.ListPoliciesResponse())
    assert run(None, "policy", "list").exit_code == 0


def test_questions_that_are_refused_are_named_by_line(
    server: ScriptedServer, tmp_path: Path
) -> None:
    (tmp_path / "q.jsonl").write_text("…\n…\n…\n")
    server.answer(
        "RegisterQuestions",
        catalog_pb2.RegisterQuestionsResponse(
            results=[
                catalog_pb2.RegisteredQuestion(index=1, question=catalog_pb2.Question(id="que-1")),
                catalog_pb2.RegisteredQuestion(
                    index=3, error=catalog_pb2.QuestionError(field="answer", message="not a number")
                ),
            ]
        ),
    )
    done = run(server, "question", "register", "q.jsonl")
    assert done.exit_code == 2
    assert done.stdout == "que-1\n"
    assert done.stderr.splitlines() == [
        "q.jsonl:3: answer: not a number",
        "error: 1 of 2 questions were refused",
    ]


def test_align_shows_a_row_for_each_teacher_and_loss(server: ScriptedServer) -> None:
    teachers = {"big": "tea-1", "mine": "tea-2"}
    server.answer(
        "GetTeacher",
        lambda request, context: catalog_pb2.GetTeacherResponse(
            teacher=catalog_pb2.Teacher(id=teachers[request.teacher])
        ),
    )
    server.answer(
        "GetAlignment",
        diagnosis_pb2.GetAlignmentResponse(
            node=diagnosis_pb2.Node(policy_id="pol-1", rollouts=1234, success=interval(0.5)),
            alignments=[
                alignment(0.42),
                alignment("~", teacher="tea-2"),
                alignment(-0.05, teacher="", loss=diagnosis_pb2.LOSS_DR_GRPO),
            ],
        ),
    )
    done = run(server, "align", "trj-1", "-p", "0", "-t", "big", "-t", "mine", "-l", "reverse_kl",
               "-l", "dr_grpo")  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["rollouts", "1,234"] in rows
    assert ["big", "OK", "+0.42", "0.99", "+0.004", "+0.042"] in rows
    assert ["reverse_kl", "+.32…+.52", "+.003…+.005", "+.032…+.052"] in rows
    assert ["mine", "NO_SIGNAL", "–", "–", "–", "–"] in rows
    assert ["dr_grpo", "OK", "-0.05", "0.01", "-0.001", "-0.005"] in rows


def test_view_shows_the_generation_and_on_demand_a_table(server: ScriptedServer) -> None:
    server.answer(
        "GetTrajectory",
        trajectory_pb2.GetTrajectoryResponse(
            trajectory=trajectory_pb2.Trajectory(
                id="trj-1",
                question_id="que-1",
                reward=1.0,
                length=3,
                tokens=[trajectory_pb2.Token(id=i, text=t) for i, t in enumerate((" 3", " 4", ""))],
            )
        ),
    )
    question = catalog_pb2.Question(id="que-1", fields={"question": "3 + 1?", "answer": "4"})
    server.answer("GetQuestion", catalog_pb2.GetQuestionResponse(question=question))
    server.answer(
        "GetTeacher",
        catalog_pb2.GetTeacherResponse(teacher=catalog_pb2.Teacher(id="tea-1", name="big")),
    )
    server.answer("StreamTrajectoryAlignments", answers([0.9, "0.1", "."]))
    done = run(server, "view", "trj-1", "-t", "big", "--table")
    assert done.exit_code == 0, done.stderr
    assert "✓ correct" in done.stdout
    assert "3 + 1?  (answer: 4)" in done.stdout
    assert "   3 4∅\n   + ?.\n" in done.stdout
    assert "+.80…+1.00" in done.stdout


def test_grow_says_what_this_run_paid_and_what_was_there(server: ScriptedServer) -> None:
    def growth(state: str, sampled: int) -> growth_pb2.Growth:
        return growth_pb2.Growth(
            id="gro-1",
            state=growth_pb2.GrowthState.Value(f"GROWTH_STATE_{state}"),
            rollouts_sampled=sampled,
            tokens_sampled=sampled * 10,
            rollouts_cached=50,
            rollouts_planned=300,
            nodes=7,
        )

    def start(request: Any, context: grpc.ServicerContext) -> growth_pb2.StartGrowthResponse:
        return growth_pb2.StartGrowthResponse(growth=growth("RUNNING", 100))

    server.answer("StartGrowth", start)
    server.answer(
        "WatchGrowth",
        [
            growth_pb2.WatchGrowthResponse(growth=growth(state, sampled))
            for state, sampled in (("RUNNING", 200), ("SUCCEEDED", 300))
        ],
    )
    done = run(server, "grow", "trj-1", "-p", "4", "--rollouts", "300", "-t", "big",
               "--request-id", "again")  # fmt: skip
    assert done.exit_code == 0, done.stderr
    rows = [line.strip() for line in done.stdout.splitlines()]
    assert "rollouts  200 sampled, 150 from the cache" in rows
    assert "tokens    2,000 sampled" in rows
    (request,) = server.requests("StartGrowth")
    assert request.targets[0].node.trajectory.position == 4
    assert request.request_id == "again"


def test_ctrl_c_is_no_traceback(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(client: unmask.Client) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(unmask.Client, "statistics", interrupt)
    done = run(server, "stats")
    assert (done.exit_code, done.stderr) == (130, "interrupted; what was sampled is kept\n")


def test_without_its_extra_the_command_says_what_to_install() -> None:
    code = "import sys; sys.modules['typer'] = None; import unmask.cli; unmask.cli.main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "error: the command needs typer: pip install 'unmask[cli]'\n"


def test_a_node_s_candidates_end_with_the_observed_one_and_the_tail(
    server: ScriptedServer,
) -> None:
    candidates = [
        diagnosis_pb2.Candidate(
            token=trajectory_pb2.Token(id=i, text=f" t{i}"), probability=0.3, success=interval(0.5)
        )
        for i in range(5)
    ]
    answer = diagnosis_pb2.GetNodeResponse(
        node=diagnosis_pb2.Node(observed=candidates[4].token),
        candidates=candidates,
        tail=diagnosis_pb2.Candidate(probability=0.1, rollouts=3),
    )
    server.answer("GetNode", answer)
    done = run(server, "node", "trj-1", "-p", "2", "-n", "2")
    assert done.exit_code == 0, done.stderr
    shown = [line.split()[:2] for line in done.stdout.splitlines()[-4:]]
    assert shown == [["0", "‘"], ["1", "‘"], ["4", "‘"], ["all", "others"]]
    assert "the 2 likeliest of 5 candidates" in done.stderr
