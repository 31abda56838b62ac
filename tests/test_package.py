"""What is installed: a thin client, and a server that runs anywhere."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

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


@pytest.mark.slow
def test_the_server_runs_from_an_installed_wheel_in_any_directory(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path / "dist", ROOT],
        check=True,
        capture_output=True,
    )
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", wheel],
        check=True,
        capture_output=True,
    )
    # The dependencies are this environment's; as a plain path it does not bring the checkout along.
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = tmp_path / "env" / "lib" / version / "site-packages"
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"])
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    script = tmp_path / "env" / "bin" / "unmask-server"
    done = subprocess.run(
        [script, "migrate", "--database", "sqlite:///fresh.db"],
        cwd=elsewhere,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "head" in done.stdout
    assert (elsewhere / "fresh.db").exists()
    where = "import unmask_server, unmask; print(unmask_server.__file__, unmask.__file__)"
    done = subprocess.run(
        [python, "-c", where], cwd=elsewhere, capture_output=True, text=True, check=True
    )
    assert str(ROOT) not in done.stdout
    with subprocess.Popen(
        [script, "serve", "--database", "sqlite:///fresh.db", "--listen", "unix:socket"],
        cwd=elsewhere,
    ) as server:
        try:
            code = (
                "import unmask\n"
                "client = unmask.Client('unix:socket')\n"
                "print(client.statistics().rollouts)\n"
            )
            done = subprocess.run(
                [python, "-c", code], cwd=elsewhere, capture_output=True, text=True, check=False
            )
            assert done.stdout.strip() == "0", done.stderr
        finally:
            server.terminate()
        assert server.wait(20) == 0
