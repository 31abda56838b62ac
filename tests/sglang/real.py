"""Real SGLang servers on tiny models, started as a team would have Unmask start them."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
from unmask_server.engines.sglang.launch import Launch, ManagedSglang

ROOT = Path(__file__).parents[2]
PYTHON = Path(os.environ.get("SGLANG_VENV", ROOT / ".venv-sglang")) / "bin" / "python"
"""Of the environment that `make sglang-cpu` makes."""
SMALL = (
    *("--max-total-tokens", "16384", "--max-running-requests", "64"),
    *("--log-level-http", "warning"),
)


def real(model: Path, *arguments: str) -> Launch:
    """A real SGLang on the CPU, with little memory."""
    return Launch(
        model=str(model),
        command=(str(PYTHON), "-m", "sglang_cpu"),
        arguments=(*SMALL, *arguments),
    )


def processes(server: ManagedSglang) -> list[psutil.Process]:
    """The supervisor, SGLang and all its workers."""
    assert server.pid is not None
    supervisor = psutil.Process(server.pid)
    return [supervisor, *supervisor.children(recursive=True)]
