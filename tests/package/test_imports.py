"""What is installed: a thin client, and a server that runs anywhere."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("torch", "transformers", "numpy", "sqlalchemy", "rich", "typer", "pydantic", "jinja2",
         "pyarrow")  # fmt: skip


def loaded_by(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_the_client_needs_grpcio_and_protobuf_only() -> None:
    assert not loaded_by("import unmask; unmask.Client; import unmask.sharing") & set(HEAVY)


def test_the_server_holds_no_torch_until_a_model_runs() -> None:
    loaded = loaded_by("import unmask_server.app, unmask_server.serve")
    assert not loaded & {"torch", "transformers"}
