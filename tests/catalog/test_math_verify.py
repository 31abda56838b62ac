"""math-verify behind a process boundary: what is right, and what cannot hurt anybody."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from unmask_server.catalog.types import Verifier, VerifierKind
from unmask_server.catalog.verifiers import Grader, check_reference
from unmask_server.catalog.verifiers.mathematics import as_math, improper
from unmask_server.engines.base import FinishReason

STOP = FinishReason.STOP
MATH = Verifier("ver-x", 1, None, VerifierKind.MATH_VERIFY, 90, {}, 0.0)
BOMB = r"\boxed{9^{9^{9^{9}}}}"


@pytest.mark.parametrize(
    ("text", "reference", "reward"),
    [
        (r"\boxed{\frac13}", r"\frac{1}{3}", 1.0),
        (r"\boxed{x^2+2x+1}", "(x+1)^2", 1.0),
        ("so the answer is 5", "5", 1.0),
        # Mixed numbers: their fragments are no answers.
        ("2 2/3", "2", 0.0),
        ("4 10/3", "10", 0.0),
        ("2 2/3", "8/3", 1.0),
        (r"\boxed{2\frac{2}{3}}", "8/3", 1.0),
        (r"\boxed{-2 2/3}", "-8/3", 1.0),
        ("it took 2 2/3 cups, so 5 in all: $5$", "5", 1.0),
        # Boxes: the last one counts, and only if it is closed.
        (r"\boxed{3} wait no \boxed{5}", "5", 1.0),
        (r"\boxed{3} wait no \boxed{5}", "3", 0.0),
        (r"\boxed{3} wait no \boxed{5", "3", 0.0),
        (r"\fbox{42}", "42", 1.0),
        # Per cent as math-verify 0.9.0 has it: the version is part of the verifier's identity.
        ("28", r"$28\%$", 1.0),
        ("0.28", r"$28\%$", 1.0),
        ("", "5", 0.0),
    ],
)
def test_math_verify_compares_mathematics(
    grader: Grader, text: str, reference: str, reward: float
) -> None:
    assert grader.grade_many(MATH, [(text, reference, STOP)]) == [reward]


@pytest.mark.parametrize("reference", ["", "$$", "see figure", "no answer"])
def test_a_reference_that_is_no_mathematics_is_refused(grader: Grader, reference: str) -> None:
    assert check_reference(MATH, reference, grader)


@pytest.mark.parametrize("reference", ["5", "ab", r"\text{yes}", "(1, 2)", "1,234", "2 2/3"])
def test_a_reference_that_is_mathematics_is_accepted(grader: Grader, reference: str) -> None:
    assert check_reference(MATH, reference, grader) is None


def test_mixed_numbers_become_fractions_and_powers_stay() -> None:
    assert improper(r"2 2/3 and 4\dfrac{1}{2}") == r"8/3 and \frac{9}{2}"
    assert improper(r"10^2\frac{1}{3}") == r"10^2\frac{1}{3}"
    assert improper("1/2") == "1/2"


def test_words_are_no_products_of_variables() -> None:
    assert as_math("see figure") == "see figure"
    assert as_math(r"\text{blue}") == r"$\text{blue}$"


def test_a_closed_grader_starts_no_more_workers() -> None:
    closed = Grader()
    closed.close()
    with pytest.raises(RuntimeError, match="closed"):
        closed.grade_many(MATH, [("1", "1", STOP)])


def test_workers_hold_no_torch() -> None:
    script = (
        "import sys, math_verify, unmask_server.catalog.verifiers.mathematics; "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.slow
def test_a_script_without_a_guard_can_grade(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from unmask_server.catalog.verifiers.pool import WorkerPool\n"
        "print('started')\n"
        "pool = WorkerPool()\n"
        "print(pool.ask('mathematics', 'right', '5', '5').value)\n"
        "pool.close()\n"
    )
    done = subprocess.run([sys.executable, script], check=True, capture_output=True, text=True)
    assert done.stdout == "started\nTrue\n"


@pytest.mark.slow
def test_a_bomb_fails_by_itself_and_holds_up_nobody(grader: Grader) -> None:
    # In a thread of this process it would hold the interpreter, and with it this test, for ever.
    with ThreadPoolExecutor(17) as pool:
        bomb = pool.submit(grader.grade_many, MATH, [(BOMB, "1", STOP)])
        others = [
            pool.submit(grader.grade_many, MATH, [(r"\boxed{\frac13}", r"\frac13", STOP)])
            for _ in range(16)
        ]
        assert [other.result() for other in others] == [[1.0]] * 16
        assert bomb.result() == [0.0]


@pytest.mark.slow
def test_what_stands_beside_a_bomb_in_its_batch_is_graded(grader: Grader) -> None:
    items = [("5", "5", STOP), (BOMB, "1", STOP), ("6", "6", STOP), ("7", "6", STOP)]
    assert grader.grade_many(MATH, items) == [1.0, 0.0, 1.0, 0.0]
