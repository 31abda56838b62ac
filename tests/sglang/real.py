"""Real SGLang servers on tiny models, started as a team would have Unmask start them."""

from __future__ import annotations

import os
from pathlib import Path

from unmask_server.engines.sglang.launch import Launch

ROOT = Path(__file__).parents[2]
PYTHON = Path(os.environ.get("SGLANG_VENV", ROOT / ".venv-sglang")) / "bin" / "python"
"""Of the environment that `make sglang-cpu` makes."""
SMALL = (
    # One thread: several of them and the tests share few cores, and the models are tiny.
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
