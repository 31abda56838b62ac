from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM
from unmask_server.engines.transformers import TransformersEngine

from tests.engines.models import save


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder, made = tmp_path_factory.mktemp("models"), dict[str, Path]()

    def get(name: str) -> Path:
        if name not in made:
            made[name] = save(name, folder)
        return made[name]

    return get


@pytest.fixture(scope="session")
def plain(checkpoint: Callable[[str], Path]) -> Callable[[str], Any]:
    loaded: dict[str, Any] = {}

    def get(name: str) -> Any:
        if name not in loaded:
            loaded[name] = AutoModelForCausalLM.from_pretrained(
                checkpoint(name), attn_implementation="eager"
            ).eval()
        return loaded[name]

    return get


@pytest.fixture
async def open_engine(
    checkpoint: Callable[[str], Path],
) -> AsyncIterator[Callable[..., TransformersEngine]]:
    opened: list[TransformersEngine] = []

    def get(name: str = "qwen2", **options: Any) -> TransformersEngine:
        options.setdefault("threads", 1)
        opened.append(TransformersEngine.load(checkpoint(name), **options))
        return opened[-1]

    yield get
    for engine in opened:
        await engine.close()
