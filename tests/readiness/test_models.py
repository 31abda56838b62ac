"""Whether a model can be run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from unittest.mock import AsyncMock

from sqlalchemy import Engine, insert
from unmask_server.access.sources import ANYWHERE
from unmask_server.catalog.types import Model
from unmask_server.config import Settings
from unmask_server.database import schema
from unmask_server.database.connect import write
from unmask_server.engines.pool import EnginePool
from unmask_server.launched import LaunchedModels
from unmask_server.readiness.models import NEWEST, ModelsCheck

from tests.catalog.checkpoints import checkpoint

MODEL = Model(
    fingerprint="old",
    source="",
    architecture="",
    vocab_size=1,
    max_context=1,
    tokenizer_fingerprint="a",
    eos_ids=(),
)


async def test_a_model_at_work_counts_however_many_newer_ones_are_away(
    database: Engine, tmp_path: Path
) -> None:
    old = dataclasses.replace(MODEL, source=checkpoint(tmp_path / "old"))
    row = {"architecture": "", "vocab_size": 1, "max_context": 1, "eos_ids": []}
    rows = [
        {**row, "fingerprint": f"{i}", "tokenizer_fingerprint": "a", "created_at": float(i),
         "source": old.source if i == 0 else str(tmp_path / f"gone-{i}")}
        for i in range(NEWEST + 1)
    ]  # fmt: skip
    with write(database) as connection:
        connection.execute(insert(schema.model), rows)
    engines = EnginePool(AsyncMock(), max_engines=1)
    check = ModelsCheck(database, engines, LaunchedModels(Settings()), ANYWHERE)
    assert "cannot be read" in await check.problem(store_is_there=True)
    await engines.get(old, 1)
    assert await check.problem(store_is_there=True) == ""
    # Put away again, it is one of the old ones.
    await engines.close()
    assert "cannot be read" in await check.problem(store_is_there=True)
