"""reasoning-gym's questions and scorers, in workers that can hang or be fooled without harm."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from unmask_server.catalog import Catalog, Grader
from unmask_server.catalog.errors import FailedPrecondition, InvalidArgument
from unmask_server.catalog.types import Question, QuestionSpec, Verifier, VerifierKind
from unmask_server.catalog.verifiers import check_reference, gym
from unmask_server.catalog.verifiers.pool import Failed, WorkerPool
from unmask_server.catalog.verifiers.worker import Guard
from unmask_server.engines.base import FinishReason

STOP = FinishReason.STOP


def test_without_the_library_it_says_what_to_install(
    catalog: Catalog, grader: Grader, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> str:
        raise gym.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(gym.metadata, "version", missing)
    with pytest.raises(FailedPrecondition, match=r"pip install 'unmask\[reasoning-gym\]'"):
        catalog.get_verifier("reasoning_gym")
    with pytest.raises(FailedPrecondition, match="not installed"):
        grader.gym.questions("chain_sum", size=1, seed=0, config={}, prompt="none")


@pytest.mark.parametrize(
    ("version", "number"),
    [("0.1.25", 1025), ("1.2.3", 1_002_003), ("0.2", 2000), ("0.1.3rc1", 1003)],
)
def test_versions_are_numbers_in_order(
    version: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gym.metadata, "version", lambda _: version)
    assert gym.version_number() == number


def test_a_guard_refuses_what_changes_anything_outside() -> None:
    guard = Guard()
    guard("os.system", ("ls",))  # off
    guard.on = True
    guard("open", (json.__file__, "r", 0))
    guard("open", (3, "r", 0))
    guard("compile", (None, "x"))
    for event, args in (
        ("os.system", ("ls",)), ("subprocess.Popen", ()), ("socket.connect", ()),
        ("open", (json.__file__, "w", 0)), ("open", (json.__file__, None, 0o101)),
        ("shutil.rmtree", ("/",)), ("open", ("/etc/passwd", "r", 0)), ("open", ("file", "r", 0)),
        ("open", (f"{json.__file__}/../../../../../../../../etc/passwd", "r", 0)),
    ):  # fmt: skip
        with pytest.raises(PermissionError):
            guard(event, args)


def test_what_is_answered_reads_libraries_and_no_other_file(tmp_path: Path) -> None:
    """The hook at work: a library that is loaded late, and files of the machine."""
    (tmp_path / "secret").write_text("hunter2")
    (tmp_path / "link.py").symlink_to(tmp_path / "secret")
    script = (
        "import sys\n"
        "from unmask_server.catalog.verifiers.worker import Guard\n"
        "guard = Guard(); sys.addaudithook(guard); guard.on = True\n"
        "import sympy, colorsys\n"
        "for path in ('/etc/passwd', 'secret', 'link.py', '/proc/self/environ'):\n"
        "    try:\n"
        "        print(open(path).read())\n"
        "    except PermissionError as error:\n"
        "        print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
    )  # fmt: skip
    assert done.stdout == "open is not for scorers\n" * 4


def test_a_set_cannot_be_told_to_read_a_file_of_the_machine(tmp_path: Path) -> None:
    pytest.importorskip("reasoning_gym")
    secret = tmp_path / "secret"
    secret.write_text("hunter\n" * 10)
    pool = WorkerPool()
    try:
        with pytest.raises(InvalidArgument, match="not for scorers"):
            gym.ReasoningGym(pool).questions(
                "spell_backward",
                size=1,
                seed=1,
                config={"data_file": str(secret)},
                prompt="none",
            )
    finally:
        pool.close()


def test_a_failure_in_a_worker_is_an_answer_and_the_worker_goes_on() -> None:
    pool = WorkerPool()
    try:
        failed = pool.ask("mathematics", "no_such_function")
        assert isinstance(failed, Failed)
        assert failed.reason.startswith("AttributeError")
        assert pool.ask("mathematics", "right", "5", "5") != failed
        with pytest.raises(RuntimeError, match="no_such_module"):
            pool.ask("no_such_module", "right")
    finally:
        pool.close()


@pytest.fixture
def verifier() -> Verifier:
    pytest.importorskip("reasoning_gym")
    version = gym.version_number()
    return Verifier("ver-x", 1, None, VerifierKind.REASONING_GYM, version, {}, 0.0)


def made(grader: Grader, dataset: str, size: int = 3) -> list[QuestionSpec]:
    return grader.gym.questions(dataset, size=size, seed=1, config={}, prompt="none")


@pytest.mark.parametrize(
    "dataset",
    ["chain_sum", "gsm_symbolic", "number_sorting", "spell_backward", "countdown", "mini_sudoku",
     "zebra_puzzles", "propositional_logic", "graph_color", "string_insertion"],
)  # fmt: skip
def test_its_own_answers_are_right_and_others_are_not(
    grader: Grader, verifier: Verifier, dataset: str
) -> None:
    for question in made(grader, dataset):
        origin = question.fields["reasoning_gym"]
        assert question.fields["task"] == dataset
        assert check_reference(verifier, origin, grader) is None
        texts = [f"so <answer>{question.fields['answer']}</answer>",
                 "<answer>wrong</answer>", "no tags", ""]  # fmt: skip
        right, *wrong = grader.grade_many(verifier, [(text, origin, STOP) for text in texts])
        assert right == 1.0
        assert all(0.0 <= reward < 1.0 for reward in wrong)


def test_a_part_of_an_answer_has_a_part_of_the_score(grader: Grader, verifier: Verifier) -> None:
    (question, *_) = made(grader, "mini_sudoku")
    rows = question.fields["answer"].split("\n")
    text = "\n".join([*rows[:3], " ".join(reversed(rows[3].split()))])
    item = (f"<answer>{text}</answer>", question.fields["reasoning_gym"], STOP)
    assert 0.0 < grader.grade_many(verifier, [item])[0] < 1.0


def test_the_whole_text_is_the_answer_where_the_verifier_says_so(
    grader: Grader, verifier: Verifier
) -> None:
    (question, *_) = made(grader, "chain_sum")
    whole = Verifier("v", 2, None, verifier.kind, verifier.version, {"extract": "all"}, 0.0)
    item = (f" {question.fields['answer']}\n", question.fields["reasoning_gym"], STOP)
    assert grader.grade_many(whole, [item]) == [1.0]
    assert grader.grade_many(verifier, [item]) == [0.0]
    cut_off = (*item[:2], FinishReason.LENGTH)
    assert grader.grade_many(whole, [cut_off]) == [0.0]


def test_the_same_set_is_the_same_questions_with_the_librarys_instruction(
    grader: Grader, verifier: Verifier
) -> None:
    made = [
        grader.gym.questions("chain_sum", size=2, seed=5, config={"min_terms": 3}, prompt=prompt)
        for prompt in ("default", "default", "none")
    ]
    assert made[0] == made[1]
    for asked, bare in zip(made[0], made[2], strict=True):
        assert "<answer>answer here</answer>" in asked.fields["question"]
        assert asked.fields["question"].endswith(bare.fields["question"])
        assert asked.fields["problem"] == bare.fields["question"]
        assert json.loads(bare.fields["reasoning_gym"])["config"] == {"min_terms": 3}


@pytest.mark.parametrize(
    ("dataset", "config", "prompt", "problem"),
    [
        ("chain_sums", {}, "none", "is it chain_sum"),
        ("chain_sum", {"min_terms": 9, "max_terms": 2}, "none", "max_terms"),
        ("chain_sum", {"terms": 9}, "none", "terms"),
        ("chain_sum", {"seed": 9}, "none", "field of its own"),
        ("chain_sum", {}, "polite", "is none of none"),
    ],
)
def test_what_no_set_is_like_is_refused(
    grader: Grader, verifier: Verifier, dataset: str, config: dict[str, int], prompt: str,
    problem: str,
) -> None:  # fmt: skip
    with pytest.raises(InvalidArgument, match=problem):
        grader.gym.questions(dataset, size=1, seed=1, config=config, prompt=prompt)


def test_only_what_this_version_made_is_scored(
    catalog: Catalog, grader: Grader, verifier: Verifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    (question, *_) = catalog.register_questions(made(grader, "chain_sum", 1))
    assert isinstance(question, Question)
    assert question.verifier.kind is VerifierKind.REASONING_GYM
    assert question.verifier.version == verifier.version
    origin = question.fields["reasoning_gym"]
    monkeypatch.setattr(gym.metadata, "version", lambda _: "9.9.9")
    assert "register it anew" in str(check_reference(verifier, origin, grader))
    with pytest.raises(FailedPrecondition, match="register the question anew"):
        grader.grade_many(question.verifier, [("1", origin, STOP)])


@pytest.mark.parametrize("origin", ["", "12", "{}", '{"version": 1', "[" * 100_000])
def test_a_question_from_elsewhere_cannot_be_scored(
    grader: Grader, verifier: Verifier, origin: str
) -> None:
    assert check_reference(verifier, origin, grader)


def test_an_entry_that_does_not_exist_is_refused(grader: Grader, verifier: Verifier) -> None:
    (question, *_) = made(grader, "chain_sum")
    origin = {**json.loads(question.fields["reasoning_gym"]), "dataset": "nothing"}
    assert "nothing" in str(check_reference(verifier, json.dumps(origin), grader))


def test_an_answer_that_is_code_changes_nothing(
    grader: Grader, verifier: Verifier, tmp_path: Path
) -> None:
    # This scorer evaluates lists.
    (question, *_) = made(grader, "string_insertion")
    for i, code in enumerate(
        [
            f"__import__('os').system('touch {tmp_path}/0')",
            f"open('{tmp_path}/1', 'w').write('x')",
            f"__import__('pathlib').Path('{tmp_path}/2').touch()",
            "exit()",
        ]
    ):
        item = (f"<answer>[{code}]</answer>", question.fields["reasoning_gym"], STOP)
        assert grader.grade_many(verifier, [item]) == [0.0], i
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("code", ["9**9**9**9", "[0 for _ in iter(int, 1)]"])
def test_a_scorer_that_hangs_is_a_failure(grader: Grader, verifier: Verifier, code: str) -> None:
    (question, *_) = made(grader, "string_insertion")
    origin = question.fields["reasoning_gym"]
    texts = [f"<answer>[{code}]</answer>", f"<answer>{question.fields['answer']}</answer>"]
    assert grader.grade_many(verifier, [(text, origin, STOP) for text in texts]) == [0.0, 1.0]
