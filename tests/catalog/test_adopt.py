"""Things of another server, taken over by their descriptions, on both databases."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import Engine
from unmask.v1 import sharing_pb2
from unmask_server.api import catalog_messages
from unmask_server.api import sharing_messages as messages
from unmask_server.catalog import Catalog, Grader
from unmask_server.catalog.errors import FailedPrecondition, InvalidArgument, NotFound
from unmask_server.catalog.rows import digest, verifier_values
from unmask_server.catalog.types import (
    Control,
    Policy,
    Prompting,
    PromptStyle,
    Question,
    QuestionSpec,
    Teacher,
    VerifierKind,
)
from unmask_server.database.connect import open_database
from unmask_server.database.migrate import migrate
from unmask_server.engines.base import Sampling

from tests.catalog.checkpoints import checkpoint
from tests.catalog.conftest import policy, question, teacher


@pytest.fixture
def elsewhere(tmp_path: Path, grader: Grader) -> Iterator[Catalog]:
    """Another server's catalog."""
    url = f"sqlite:///{tmp_path}/elsewhere.db"
    migrate(url)
    engine = open_database(url)
    yield Catalog(engine, grader)
    engine.dispose()


def adopted_policy(catalog: Catalog, found: Policy) -> tuple[Policy, bool, list[str]]:
    told = messages.policy_of(messages.shared_policy(found), "f")
    new, warnings = catalog.adopter.policy(told, "f")
    return catalog.get_policy(found.id), new, warnings


def adopted_teacher(catalog: Catalog, found: Teacher) -> tuple[Teacher, bool, list[str]]:
    message = messages.shared_teacher(found)
    base = message.teacher.base_teacher_id or None
    new, warnings = catalog.adopter.teacher(messages.teacher_of(message, "f"), base, "f")
    return catalog.get_teacher(found.id), new, warnings


def test_policies_come_out_the_same(catalog: Catalog, elsewhere: Catalog, folder: str) -> None:
    raw = Prompting(PromptStyle.RAW, "Q: {{ content }} A:")
    settings: list[dict[str, object]] = [
        {"name": "plain"},
        {"sampling": Sampling(0.7, 0.9, 5), "stop_ids": (0, 3)},
        {"sampling": Sampling(0.7, 0.9, 5), "joint": True, "prompting": raw},
    ]
    for chosen in settings:
        mine = policy(elsewhere, folder, **chosen)
        found, new, warnings = adopted_policy(catalog, mine)
        assert new
        assert not warnings
        assert (found.name, found.sampling, found.stop_ids, found.prompting) == (
            mine.name, mine.sampling, mine.stop_ids, mine.prompting
        )  # fmt: skip
        assert adopted_policy(catalog, mine)[1] is False
        # And registering it here finds it.
        assert policy(catalog, folder, **chosen).id == mine.id


def test_teachers_come_out_the_same(catalog: Catalog, elsewhere: Catalog, folder: str) -> None:
    student = policy(elsewhere, folder)
    own = teacher(elsewhere, folder, "mine", template="{{ question }}!", name="own")
    made = [
        teacher(elsewhere, folder, "answer"),
        own,
        elsewhere.register_control(Control.PERMUTED, base=own, student=None, name=None),
        elsewhere.register_control(Control.SHARPENED, base=None, student=student, name=None),
        elsewhere.register_stored("a file", students=[student], name="filed"),
    ]
    for mine in made:
        found, new, _ = adopted_teacher(catalog, mine)
        assert new
        assert found.model.fingerprint == mine.model.fingerprint
        assert (found.name, found.context, found.template, found.control, found.stored) == (
            mine.name, mine.context, mine.template, mine.control, mine.stored
        )  # fmt: skip
        assert (found.base and found.base.id) == (mine.base and mine.base.id)


def test_a_control_needs_its_teacher(catalog: Catalog, elsewhere: Catalog, folder: str) -> None:
    base = teacher(elsewhere, folder)
    control = elsewhere.register_control(Control.PERMUTED, base=base, student=None, name=None)
    with pytest.raises(NotFound):
        adopted_teacher(catalog, control)


def test_questions_and_verifiers_come_out_the_same(catalog: Catalog, elsewhere: Catalog) -> None:
    short = elsewhere.register_verifier(VerifierKind.LENGTH, {"limit": "9"}, "short")
    exact = elsewhere.get_verifier("exact")
    verifiers = [
        exact,
        short,
        elsewhere.register_verifier(VerifierKind.EXTERNAL, {"source": "a model"}, None),
        elsewhere.objective([(exact, 1.0), (short, -0.25)], "f"),
    ]
    for verifier in verifiers:
        message = catalog_messages.verifier(verifier)
        new, _ = catalog.adopter.verifier(messages.verifier_of(message, "f"), "f")
        assert new
        found = catalog.get_verifier(verifier.id)
        assert (found.name, found.kind, found.options, found.version) == (
            verifier.name, verifier.kind, verifier.options, verifier.version
        )  # fmt: skip
        assert [(part.id, weight) for part, weight in found.terms] == [
            (part.id, weight) for part, weight in verifier.terms
        ]
    specs = [
        QuestionSpec("texts", {"question": "q", "answer": "3", "hint": "é"}),
        QuestionSpec(None, {"answer": "3"}, (2, 3)),
    ]
    for mine in elsewhere.register_questions(specs, exact):
        assert isinstance(mine, Question)
        message = catalog_messages.question(mine)
        grades = catalog.get_verifier(message.verifier_id)
        told = messages.question_of(message, grades)
        assert catalog.adopter.questions([(told, grades.id, "f")]) == (1, [])
        found = catalog.get_question(mine.id)
        assert (found.name, found.fields, found.prompt_tokens, found.verifier.id) == (
            mine.name, mine.fields, mine.prompt_tokens, mine.verifier.id
        )  # fmt: skip


def test_a_verifier_of_another_version_grades_nothing_here(
    catalog: Catalog, grader: Grader
) -> None:
    values = verifier_values(VerifierKind.EXACT, 99, {})
    told = replace(catalog.get_verifier("exact"), id="ver-" + digest(values), version=99)
    assert catalog.adopter.verifier(told, "f")[0]
    found = catalog.get_verifier(told.id)
    assert found.version == 99
    with pytest.raises(FailedPrecondition, match="of version 99"):
        grader.check_ready(found)


def test_names_that_are_others_are_left_out(
    catalog: Catalog, elsewhere: Catalog, folder: str
) -> None:
    policy(catalog, folder, name="student", max_new_tokens=4)
    mine = policy(elsewhere, folder, name="student")
    found, new, (warning,) = adopted_policy(catalog, mine)
    assert new
    assert found.name is None
    assert "another policy" in warning
    # What has a name here keeps it.
    policy(catalog, folder, name="ours", max_new_tokens=5)
    theirs = policy(elsewhere, folder, name="theirs", max_new_tokens=5)
    found, new, (warning,) = adopted_policy(catalog, theirs)
    assert (found.name, new) == ("ours", False)
    assert "ours" in warning


def test_a_model_that_is_elsewhere_is_told_and_found_later(
    catalog: Catalog, elsewhere: Catalog, tmp_path: Path
) -> None:
    gone = checkpoint(tmp_path / "gone", weight=2.0)
    mine = policy(elsewhere, gone)
    Path(gone).rename(tmp_path / "here")
    found, _, (warning,) = adopted_policy(catalog, mine)
    assert "not here" in warning
    with pytest.raises(FailedPrecondition):
        catalog.tokenizer(found.model)
    assert policy(catalog, str(tmp_path / "here")).id == found.id
    assert catalog.tokenizer(catalog.get_policy(found.id).model).limit == 21


def test_what_is_not_what_its_id_says_is_refused(
    catalog: Catalog, elsewhere: Catalog, folder: str, database: Engine
) -> None:
    mine = messages.shared_policy(policy(elsewhere, folder))
    for name, value in (("max_new_tokens", 9), ("id", "pol-1")):
        changed = type(mine)()
        changed.CopyFrom(mine)
        setattr(changed, name, value)
        with pytest.raises(InvalidArgument) as error:
            catalog.adopter.policy(messages.policy_of(changed, "f"), "f")
        assert error.value.field == "f.id"
    odd = messages.shared_policy(policy(elsewhere, folder))
    odd.prompting.style = 0
    with pytest.raises(InvalidArgument):
        messages.policy_of(odd, "f")
    told = messages.shared_teacher(teacher(elsewhere, folder))
    broken = sharing_pb2.SharedTeacher()
    broken.CopyFrom(told)
    broken.teacher.context.template = "{{ question"
    with pytest.raises(InvalidArgument):
        catalog.adopter.teacher(messages.teacher_of(broken, "f"), None, "f")
    asked = catalog_messages.question(question(elsewhere, question="q"))
    asked.fields["answer"] = "4"
    grades = catalog.get_verifier("last_number")
    with pytest.raises(InvalidArgument):
        catalog.adopter.questions([(messages.question_of(asked, grades), grades.id, "f")])
    assert catalog.list_policies(10, None) == []
