"""A catalog in an empty database, on each store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, delete
from unmask_server.catalog import Catalog, Grader
from unmask_server.catalog.types import Policy, Question, QuestionSpec, Teacher
from unmask_server.database import schema
from unmask_server.database.connect import write
from unmask_server.engines.base import RAW

from tests.catalog.checkpoints import checkpoint

Register = Callable[..., Any]


@pytest.fixture(scope="session")
def grader() -> Iterator[Grader]:
    """One grader for all: its workers start slowly."""
    grader = Grader()
    yield grader
    grader.close()


@pytest.fixture
def catalog(database: Engine, grader: Grader) -> Catalog:
    """A catalog without anything."""
    with write(database) as connection:
        for table in (schema.question, schema.policy, schema.verifier, schema.model):
            connection.execute(delete(table))
    return Catalog(database, grader)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """A checkpoint of 21 tokens and 64 positions."""
    return checkpoint(tmp_path / "student")


def policy(catalog: Catalog, folder: str, **settings: Any) -> Policy:
    """Register a policy with the settings that are given."""
    settings = {"name": None, "sampling": RAW, "max_new_tokens": 8, **settings}
    return catalog.register_policy(path=folder, **settings)[0]


def teacher(catalog: Catalog, folder: str, context: str = "none", **settings: Any) -> Teacher:
    """Register a teacher with the settings that are given."""
    settings = {"name": None, "template": None, "prompting": None, "students": (), **settings}
    return catalog.register_teacher(path=folder, context=context, **settings)[0]


def question(catalog: Catalog, **fields: Any) -> Question:
    """Register a question whose answer is 3."""
    name, tokens = fields.pop("name", None), fields.pop("prompt_tokens", None)
    spec = QuestionSpec(name, {"answer": "3", **fields}, tokens)
    (found,) = catalog.register_questions([spec], catalog.get_verifier("last_number"))
    assert isinstance(found, Question), found
    return found
