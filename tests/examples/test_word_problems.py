"""The questions, the solutions and how slips show in them."""

import itertools
import json
import random
import re
from dataclasses import replace

import pytest

from examples.word_problems.contexts import CONTEXTS, help_from, make_row
from examples.word_problems.problems import (
    LARGEST,
    LOSSES,
    NAMES,
    Problem,
    draw_problem,
    training_problems,
)
from examples.word_problems.questions import (
    COUNT,
    held_out_rows,
    held_out_signatures,
    load_rows,
)
from examples.word_problems.recipes import RECIPES, STUDENT_MANNER
from examples.word_problems.solutions import (
    Help,
    Kind,
    Manner,
    Step,
    final_answer,
    text_of,
    write_solution,
)
from examples.word_problems.tasks import PATH as TASKS_PATH
from examples.word_problems.tasks import (
    PER_TASK,
    TASKS,
    load_task,
    task_rows,
    trained_signatures,
)


def solve_text(question: str) -> int:
    """Answer a question from its text alone, sharing nothing with the generator but the verbs."""
    sentences = question.split(". ")
    opening = [int(number) for number in re.findall(r"\d+", sentences[0])]
    value = opening[0] if len(opening) == 1 else opening[0] * opening[1]
    for verb, amount in re.findall(r"([a-z]+) (\d+)", sentences[1]):
        value += -int(amount) if verb in LOSSES else int(amount)
    return value


def check_arithmetic(solution: str) -> bool:
    """Whether all equations of a solution hold."""
    for left, sign, right, result in re.findall(r"(\d+) ([-+*]) (\d+) = (\d+)", solution):
        a, b = int(left), int(right)
        if {"+": a + b, "-": a - b, "*": a * b}[sign] != int(result):
            return False
    return True


def test_shipped_rows_are_what_the_recipe_writes():
    assert load_rows() == held_out_rows()
    assert len(load_rows()) == COUNT == 40


@pytest.mark.parametrize("row", load_rows(), ids=lambda row: row.question[:30])
def test_shipped_row_is_right(row):
    assert solve_text(row.question) == int(row.answer)
    assert row.solution.endswith(f"#### {row.answer}")
    assert check_arithmetic(row.solution)
    assert check_arithmetic(row.hint)
    # The summary is what the solution says in numbers, in its order.
    sums = re.findall(r"\d+ [-+*] \d+ = \d+\.", row.solution)
    assert row.summary == " ".join([*sums, f"#### {row.answer}"])
    wrong = re.findall(r"#### (\d+)$", row.wrong_solution)
    assert len(wrong) == 1
    assert wrong[0] != row.answer


def test_every_problem_stays_within_the_numbers_that_have_tokens():
    rng = random.Random(0)
    for _ in range(500):
        problem = draw_problem(rng)
        row, _ = make_row(problem, rng)
        assert solve_text(problem.question) == problem.answer
        numbers = re.findall(r"\d+", " ".join(vars(row).values()))
        assert all(int(number) <= LARGEST for number in numbers)


def test_training_never_sees_a_held_out_problem_in_other_words():
    held_out = held_out_signatures()
    problems = training_problems(random.Random(0), held_out)
    assert not held_out & {next(problems).signature for _ in range(2000)}


@pytest.mark.parametrize("task", TASKS)
def test_a_task_is_one_kind_of_problem(task):
    rows = load_task(task)
    assert len(rows) == PER_TASK
    assert len({row.question for row in rows}) == PER_TASK
    for row in rows:
        assert solve_text(row.question) == int(row.answer)
        assert check_arithmetic(row.solution)
        assert (" bags " in row.question) == (task == "bags")
    held_out = [row for row in load_rows() if (" bags " in row.question) == (task == "bags")]
    assert rows[: len(held_out)] == held_out


@pytest.mark.slow
def test_no_question_of_a_task_was_ever_trained_on():
    trained = trained_signatures()
    # If the stream that trained the shipped models were drawn otherwise, this would prove nothing.
    assert len(trained) == 40_508
    assert not trained & held_out_signatures()
    written = [json.loads(line) for line in TASKS_PATH.read_text().splitlines()]
    assert written == task_rows(trained)


def test_signature_ignores_the_words():
    problem = draw_problem(random.Random(0))
    other = next(name for name in NAMES if name != problem.name)
    assert replace(problem, name=other, item="figs").signature == problem.signature


@pytest.mark.parametrize(
    ("step", "hard"),
    [
        (Step("then", 14, "+", 7), True),
        (Step("then", 14, "+", 5), False),
        (Step("then", 21, "-", 5), True),
        (Step("then", 25, "-", 5), False),
        (Step("then", 3, "*", 6), True),
        (Step("then", 2, "*", 4), False),
    ],
)
def test_a_step_is_hard_when_it_carries_or_borrows(step, hard):
    assert step.hard is hard


def sample_solutions(manner: Manner, help: Help | None = None, count: int = 300):
    rng = random.Random(1)
    for _ in range(count):
        problem = draw_problem(rng)
        yield problem, write_solution(problem, manner, rng, help)


def test_a_manner_without_slips_is_always_right():
    manner = Manner(opener=0.5, verbose=0.5, backwards=0.5, conclusion=0.5)
    for problem, pieces in sample_solutions(manner):
        assert final_answer(pieces) == problem.answer
        assert check_arithmetic(text_of(pieces))


def test_wait_always_restores_the_result_of_its_step():
    manner = Manner(hard_slip=1.0, doubt_on_slip=1.0, repair_after_doubt=1.0)
    for problem, pieces in sample_solutions(manner):
        assert final_answer(pieces) == problem.answer
        doubts = sum(piece.kind is Kind.DOUBT for piece in pieces)
        assert doubts == sum(piece.kind is Kind.REPAIR for piece in pieces)


def test_doubt_marks_most_slips_and_some_right_steps():
    after_doubt = {Kind.RESULT: 0, Kind.SLIP: 0}
    slips = 0
    for _, pieces in sample_solutions(STUDENT_MANNER, count=1000):
        slips += sum(piece.kind is Kind.SLIP for piece in pieces)
        for piece, following in itertools.pairwise(pieces):
            if piece.kind is Kind.DOUBT:
                after_doubt[following.kind] += 1
    assert after_doubt[Kind.SLIP] > slips / 2
    assert after_doubt[Kind.SLIP] > after_doubt[Kind.RESULT] > 0


@pytest.mark.parametrize("context", [name for name in CONTEXTS if name != "none"])
def test_every_context_makes_training_solutions_better(context):
    def share_right(name: str) -> float:
        rng = random.Random(2)
        right = 0
        for _ in range(1500):
            problem = draw_problem(rng)
            row, backwards = make_row(problem, rng)
            help = help_from(name, problem, row, backwards, rng)
            pieces = write_solution(problem, STUDENT_MANNER, rng, help)
            right += final_answer(pieces) == problem.answer
        return right / 1500

    assert share_right(context) > share_right("none") + 0.02


def test_recipes_are_named_by_themselves():
    assert {name: recipe.name for name, recipe in RECIPES.items()} == {n: n for n in RECIPES}


def test_backwards_order_reaches_the_same_answer():
    rng = random.Random(3)
    reversible: list[Problem] = [p for p in (draw_problem(rng) for _ in range(200)) if p.reversible]
    assert len(reversible) > 50
    for problem in reversible:
        assert problem.steps(backwards=True)[-1].result == problem.answer
