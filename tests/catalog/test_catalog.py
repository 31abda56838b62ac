"""Registering, finding and listing, on SQLite and PostgreSQL."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine
from tokenizers import Tokenizer, models
from unmask_server.catalog import Catalog, Grader, QuestionSpec
from unmask_server.catalog.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
)
from unmask_server.catalog.types import Prompting, PromptStyle, Question, VerifierKind
from unmask_server.engines.base import RAW, Sampling

from tests.catalog.checkpoints import checkpoint
from tests.catalog.conftest import policy, question, teacher
from tests.tiny import byte_bpe, word_level


def test_a_policy_is_what_it_is_and_not_its_name(catalog: Catalog, folder: str) -> None:
    first = policy(catalog, folder, name="mine")
    assert first.id.startswith("pol-")
    assert policy(catalog, folder) == policy(catalog, folder, name="mine") == first
    assert catalog.get_policy("mine") == catalog.get_policy(first.id) == first
    others = [
        policy(catalog, folder, sampling=Sampling(temperature=0.7)),
        policy(catalog, folder, sampling=Sampling(top_p=0.9)),
        policy(catalog, folder, sampling=Sampling(top_k=5)),
        policy(catalog, folder, max_new_tokens=9),
        policy(catalog, folder, stop_ids=(2,)),
        policy(catalog, folder, prompting=Prompting(PromptStyle.RAW, "q : {{ content }} a :")),
    ]
    assert len({first.id, *(other.id for other in others)}) == 7


def test_a_name_is_one_things_and_a_thing_has_one_name(catalog: Catalog, folder: str) -> None:
    nameless = policy(catalog, folder)
    assert policy(catalog, folder, name="a").id == nameless.id
    assert catalog.get_policy(nameless.id).name == "a"
    with pytest.raises(AlreadyExists, match="'a' is another policy"):
        policy(catalog, folder, name="a", max_new_tokens=9)
    with pytest.raises(AlreadyExists, match="name 'a' already"):
        policy(catalog, folder, name="b")
    assert teacher(catalog, folder, name="a").name == "a"


@pytest.mark.parametrize("name", ["", "x" * 201, "a\x00", "a\nb", "pol-1", "que-1"])
def test_a_name_can_be_told_from_an_id(catalog: Catalog, folder: str, name: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^name"):
        policy(catalog, folder, name=name)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"sampling": Sampling(temperature=0.0)}, "sampling.temperature"),
        ({"sampling": Sampling(temperature=-1.0)}, "sampling.temperature"),
        ({"sampling": Sampling(temperature=float("nan"))}, "sampling.temperature"),
        ({"sampling": Sampling(top_p=0.0)}, "sampling.top_p"),
        ({"sampling": Sampling(top_p=1.1)}, "sampling.top_p"),
        ({"sampling": Sampling(top_k=-1)}, "sampling.top_k"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": 64}, "max_new_tokens"),
        ({"stop_ids": (0, 21)}, "stop_ids[1]"),
        ({"stop_ids": (-1,)}, "stop_ids[0]"),
        ({"stop_texts": ("q : a",)}, "stop_texts[0]"),
        ({"prompting": Prompting(PromptStyle.CHAT)}, "prompting.style"),
        ({"prompting": Prompting(PromptStyle.RAW, "{{ question }}")}, "prompting.template"),
    ],
)
def test_settings_out_of_range_are_refused(
    catalog: Catalog, folder: str, settings: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        policy(catalog, folder, **settings)
    assert caught.value.field == field
    assert catalog.list_policies(10, None) == []


def test_greedy_is_refused_with_the_reason(catalog: Catalog, folder: str) -> None:
    with pytest.raises(InvalidArgument, match="greedy has no gradient"):
        policy(catalog, folder, sampling=Sampling(temperature=0.0))


def test_stops_are_the_models_own_unless_given(catalog: Catalog, tmp_path: Path) -> None:
    path = checkpoint(tmp_path, eos=[5, 0])
    assert policy(catalog, path).stop_ids == (0, 5)
    assert policy(catalog, path, stop_ids=(3, 2, 3)).stop_ids == (2, 3)
    assert policy(catalog, path, stop_texts=("so",)).stop_ids == (0, 5, 9)
    silent = checkpoint(tmp_path / "silent", eos=None)
    _, warnings = catalog.register_policy(path=silent, name=None, sampling=RAW, max_new_tokens=8)
    assert any("no stop token" in warning for warning in warnings)


def test_a_chat_template_is_the_default_and_must_work(catalog: Catalog, tmp_path: Path) -> None:
    chat = checkpoint(tmp_path / "chat", chat="{{ messages[0].content }} a :")
    assert policy(catalog, chat).prompting == Prompting(PromptStyle.CHAT)
    broken = checkpoint(tmp_path / "broken", chat="{{ messages")
    with pytest.raises(InvalidArgument, match="chat_template"):
        policy(catalog, broken)


def test_another_chat_template_is_another_policy(catalog: Catalog, tmp_path: Path) -> None:
    one = checkpoint(tmp_path / "one", chat="{{ messages[0].content }} a :")
    two = checkpoint(tmp_path / "two", chat="q : {{ messages[0].content }} a :")
    assert policy(catalog, one).id != policy(catalog, two).id


def test_a_model_that_moved_is_found_where_it_is_now(
    catalog: Catalog, folder: str, tmp_path: Path
) -> None:
    first = policy(catalog, folder, name="mine")
    moved = shutil.move(folder, tmp_path / "elsewhere")
    again = policy(catalog, str(moved))
    assert again.id == first.id
    assert again.model.source == catalog.get_policy("mine").model.source == str(moved)


def test_a_directory_with_another_model_by_now_is_told(
    catalog: Catalog, folder: str, database: Engine, grader: Grader
) -> None:
    model = policy(catalog, folder).model
    catalog.check_model_unchanged(model)
    checkpoint(Path(folder), tokenizer=byte_bpe(), weight=1.0)
    with pytest.raises(FailedPrecondition, match="another model"):
        catalog.check_model_unchanged(model)
    with pytest.raises(FailedPrecondition, match="another model"):
        Catalog(database, grader).tokenizer(model)


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(
    catalog: Catalog, tmp_path: Path
) -> None:
    with pytest.raises(InvalidArgument, match="do not belong together"):
        policy(catalog, checkpoint(tmp_path, vocab_size=20))


def test_a_teacher_must_have_the_students_tokenizer(catalog: Catalog, tmp_path: Path) -> None:
    student = policy(catalog, checkpoint(tmp_path / "student", vocab_size=24))
    padded = checkpoint(tmp_path / "padded", vocab_size=30, weight=1.0)
    found = teacher(catalog, padded, students=[student])
    assert found.model.vocab_size == 30
    assert catalog.usable_vocab(found.model) == catalog.usable_vocab(student.model) == 21
    other = checkpoint(tmp_path / "other", tokenizer=byte_bpe())
    with pytest.raises(FailedPrecondition) as caught:
        teacher(catalog, other, students=[student])
    assert "policies[0]" in str(caught.value)
    assert str(caught.value).count("there") == 5


def test_a_teacher_is_a_model_and_what_it_is_shown(catalog: Catalog, folder: str) -> None:
    plain = teacher(catalog, folder, name="t")
    assert plain == teacher(catalog, folder) == catalog.get_teacher("t")
    told = teacher(catalog, folder, "answer")
    assert told.template == "{{ question }}\nThe correct answer is {{ answer }}."
    own = teacher(catalog, folder, "mine", template="{{ question }} Hint {{ hint }}")
    assert len({plain.id, told.id, own.id}) == 3


def test_built_in_verifiers_are_there(catalog: Catalog) -> None:
    for name in ("last_number", "hash_answer", "boxed", "exact", "math_verify"):
        found = catalog.get_verifier(name)
        assert (found.name, found.kind.value, dict(found.options)) == (name, name, {})
        assert catalog.verifier_by_key(found.key) == found == catalog.get_verifier(found.id)
    assert len(catalog.list_verifiers(10, None)) == 5
    with pytest.raises(NotFound):
        catalog.get_verifier("regex")


def test_a_verifier_is_its_kind_version_and_options(catalog: Catalog) -> None:
    plain = catalog.get_verifier("exact")
    exact = VerifierKind.EXACT
    assert catalog.register_verifier(exact, {"ignore_case": "false"}, None) == plain
    loose = catalog.register_verifier(exact, {"ignore_case": "true"}, "loose")
    graded = catalog.register_verifier(exact, {"truncated": "grade"}, None)
    assert len({plain.key, loose.key, graded.key}) == 3
    assert catalog.get_verifier("loose") == loose
    with pytest.raises(InvalidArgument, match="built-in"):
        catalog.register_verifier(VerifierKind.EXACT, {"ignore_case": "true"}, "boxed")


def test_questions_succeed_or_fail_one_by_one(catalog: Catalog) -> None:
    specs: list[QuestionSpec | str] = [
        QuestionSpec("one", {"question": "q", "answer": "1,234"}),
        "no JSON",
        QuestionSpec(None, {"question": "q", "answer": "see figure"}),
        QuestionSpec(None, {"question": " ", "answer": "1"}),
        QuestionSpec("one", {"question": "another", "answer": "1"}),
        QuestionSpec(None, {"question": "q\ud800", "answer": "1"}),
        QuestionSpec(None, {"answer": "1"}, (2**31,)),
        QuestionSpec(None, {"question": "q", "answer": "1,234"}),
        QuestionSpec(None, {"answer": "1"}, (3, 4)),
        QuestionSpec(None, {"question": "a null\x00 é ☃", "answer": "1"}),
    ]
    results = catalog.register_questions(specs, catalog.get_verifier("last_number"))
    first, *rest = results
    assert isinstance(first, Question)
    assert (first.name, first.fields["answer"]) == ("one", "1,234")
    assert rest[0] == "no JSON"
    assert "no number" in str(rest[1])
    assert str(rest[2]).startswith("question: is empty")
    assert "'one' is another question" in str(rest[3])
    assert "Unicode" in str(rest[4])
    assert str(rest[5]).startswith("prompt_tokens[0]")
    assert rest[6] == first
    assert isinstance(rest[7], Question)
    assert rest[7].prompt_tokens == (3, 4)
    assert isinstance(rest[8], Question)
    assert catalog.get_question(rest[8].id).fields["question"] == "a null\x00 é ☃"
    assert catalog.list_questions(10, None) == [first, rest[7], rest[8]]


def test_the_same_question_graded_otherwise_is_another(catalog: Catalog) -> None:
    spec = QuestionSpec(None, {"question": "q", "answer": "1"})
    ids = {
        catalog.register_questions([spec], catalog.get_verifier(name))[0].id  # type: ignore[union-attr]
        for name in ("last_number", "exact")
    }
    assert len(ids) == 2


def test_lists_come_in_pages_in_the_order_of_registration(catalog: Catalog) -> None:
    specs = [QuestionSpec(None, {"question": f"q {i}", "answer": "1"}) for i in range(7)]
    catalog.register_questions(specs, catalog.get_verifier("last_number"))
    found: list[Question] = []
    while page := catalog.list_questions(
        3, (found[-1].created_at, found[-1].id) if found else None
    ):
        assert len(page) <= 3
        found += page
    assert [q.fields["question"] for q in found] == [f"q {i}" for i in range(7)]


def test_what_is_not_there_is_not_found(catalog: Catalog) -> None:
    for get in (catalog.get_policy, catalog.get_teacher, catalog.get_question):
        with pytest.raises(NotFound):
            get("nothing")


def test_registering_at_once_makes_one(
    catalog: Catalog, folder: str, database: Engine, grader: Grader
) -> None:
    replicas = [Catalog(database, grader) for _ in range(4)]
    specs = [QuestionSpec(f"n{i}", {"question": f"q {i}", "answer": "1"}) for i in range(20)]

    def register(replica: Catalog) -> tuple[str, list[str]]:
        verifier = replica.get_verifier("last_number")
        questions = replica.register_questions(specs, verifier)
        return policy(replica, folder).id, [q.id for q in questions if isinstance(q, Question)]

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(register, replicas))
    assert all(result == results[0] for result in results)
    assert len(results[0][1]) == len(catalog.list_questions(100, None)) == 20
    assert len(catalog.list_policies(10, None)) == 1


# -------------------------------------------------------------------------------------- prompts


def test_student_and_teacher_read_their_own_prompts(catalog: Catalog, tmp_path: Path) -> None:
    student = policy(
        catalog,
        checkpoint(tmp_path / "a"),
        prompting=Prompting(PromptStyle.RAW, "q : {{ content }} a :"),
    )
    told = teacher(
        catalog,
        checkpoint(tmp_path / "b", chat="{{ messages[0].content }} so"),
        "answer",
        students=[student],
    )
    asked = question(catalog, question="1 2")
    mine = catalog.policy_prompt(student, asked)
    assert mine.text == "q : 1 2 a :"
    assert mine.tokens == catalog.prompt_tokens(student, asked) == (2, 3, 6, 7, 4, 3)
    theirs = catalog.teacher_prompt(told, asked)
    assert theirs.text == "1 2\nThe correct answer is 3. so"


def test_a_context_needs_its_field(catalog: Catalog, folder: str) -> None:
    asked = question(catalog, question="1 2")
    with pytest.raises(InvalidArgument, match=f"{asked.id} has no field 'hint'"):
        catalog.teacher_prompt(teacher(catalog, folder, "hint"), asked)


def test_nothing_is_cut_to_fit(catalog: Catalog, folder: str) -> None:
    long = question(catalog, question="1 " * 57, hint="a " * 60)
    with pytest.raises(FailedPrecondition, match=r"57 tokens; with 8 more that is 65.*takes 64"):
        catalog.policy_prompt(policy(catalog, folder), long)
    assert len(catalog.prompt_tokens(policy(catalog, folder, max_new_tokens=7), long)) == 57
    with pytest.raises(FailedPrecondition, match=r"118 tokens"):
        catalog.teacher_prompt(teacher(catalog, folder, "hint"), long)


def test_a_question_given_as_ids_is_these_ids(catalog: Catalog, folder: str) -> None:
    student = policy(catalog, folder)
    asked = question(catalog, prompt_tokens=(5, 0, 0, 6))
    assert catalog.prompt_tokens(student, asked) == (5, 0, 0, 6)
    assert catalog.teacher_prompt(teacher(catalog, folder), asked).tokens == (5, 0, 0, 6)
    with pytest.raises(InvalidArgument, match="no field 'question'"):
        catalog.teacher_prompt(teacher(catalog, folder, "answer"), asked)
    both = question(catalog, prompt_tokens=(5, 6), question="1 2")
    told = catalog.teacher_prompt(teacher(catalog, folder, "answer"), both)
    assert told.text.startswith("1 2\n")
    with pytest.raises(InvalidArgument) as caught:
        catalog.prompt_tokens(student, question(catalog, prompt_tokens=(5, 21)))
    assert caught.value.field == "prompt_tokens[1]"


def test_an_empty_prompt_is_refused(catalog: Catalog, tmp_path: Path) -> None:
    path = checkpoint(tmp_path, tokenizer=Tokenizer(models.BPE({"1": 0}, [])))
    with pytest.raises(FailedPrecondition, match="empty"):
        catalog.policy_prompt(policy(catalog, path), question(catalog, question="unheard"))


def test_word_level_ids_are_what_these_tests_say() -> None:
    assert word_level().encode("q : 1 2 a :").ids == [2, 3, 6, 7, 4, 3]
