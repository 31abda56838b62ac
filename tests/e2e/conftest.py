"""A real server on a real socket, with tiny random models."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from unmask.v1 import (
    cache_pb2_grpc,
    catalog_pb2,
    catalog_pb2_grpc,
    diagnosis_pb2_grpc,
    growth_pb2_grpc,
    trajectory_pb2_grpc,
)
from unmask_server.app import App, build
from unmask_server.config import Settings
from unmask_server.database.migrate import migrate
from unmask_server.serve import running

from tests.tiny import save, word_level

MAX_NEW_TOKENS = 6


@dataclass
class Stubs:
    """The generated stubs of all services, on one channel."""

    channel: grpc.aio.Channel

    def __post_init__(self) -> None:
        self.catalog = catalog_pb2_grpc.CatalogServiceStub(self.channel)
        self.trajectory = trajectory_pb2_grpc.TrajectoryServiceStub(self.channel)
        self.diagnosis = diagnosis_pb2_grpc.DiagnosisServiceStub(self.channel)
        self.growth = growth_pb2_grpc.GrowthServiceStub(self.channel)
        self.cache = cache_pb2_grpc.CacheServiceStub(self.channel)


@dataclass
class World:
    """A server with a student, two teachers and two questions."""

    stubs: Stubs
    address: str
    app: App
    settings: Settings
    policy: str = "student"
    teachers: tuple[str, ...] = ("teacher", "self-answer")
    questions: tuple[str, ...] = ("one", "two")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tiny models: `student`, `teacher`, and `other` with another tokenizer."""
    from tests.tiny import byte_bpe

    folder = tmp_path_factory.mktemp("models")
    save(folder / "student", word_level(), seed=1, scale=3.0)
    save(folder / "teacher", word_level(), seed=2, scale=3.0, padding=3)
    save(folder / "other", byte_bpe(), kind="llama", seed=3)
    return folder


@asynccontextmanager
async def serving(url: str, folder: Path, **options: object) -> AsyncIterator[World]:
    """A server over a database, in this process, on a Unix socket in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = Settings(
        database=url, listen=[f"unix:{folder / 'socket'}"], grace_seconds=0.2, **options
    )
    migrate(url)
    app = build(settings)
    async with running(settings, app) as bound, grpc.aio.insecure_channel(bound[0]) as channel:
        yield World(Stubs(channel), bound[0], app, settings)


async def fill(world: World, models: Path) -> None:
    """Register what `World` names."""
    catalog = world.stubs.catalog
    await catalog.RegisterPolicy(
        catalog_pb2.RegisterPolicyRequest(
            name="student", model=str(models / "student"), max_new_tokens=MAX_NEW_TOKENS
        )
    )
    await catalog.RegisterTeacher(
        catalog_pb2.RegisterTeacherRequest(
            name="teacher", model=str(models / "teacher"), policies=["student"]
        )
    )
    await catalog.RegisterTeacher(
        catalog_pb2.RegisterTeacherRequest(
            name="self-answer", base_policy="student", context=catalog_pb2.Context(name="answer")
        )
    )
    rows = [
        {"name": "one", "question": "q 1 2", "answer": "3"},
        {"name": "two", "question": "q 2 2", "answer": "1"},
    ]
    response = await catalog.RegisterQuestions(
        catalog_pb2.RegisterQuestionsRequest(
            jsonl="\n".join(map(json.dumps, rows)).encode(), verifier="last_number"
        )
    )
    assert all(r.HasField("question") for r in response.results)


@pytest.fixture
async def world(tmp_path: Path, models: Path) -> AsyncIterator[World]:
    """A fresh server over a fresh SQLite file, filled."""
    async with serving(f"sqlite:///{tmp_path / 'unmask.db'}", tmp_path) as world:
        await fill(world, models)
        yield world
