"""What is built is whole, and installs into empty environments. Asks a registry of packages."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

pytestmark = [pytest.mark.install, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
VERSION = PROJECT["version"]

THIN = {"grpcio", "protobuf", "typing-extensions", "unmask"}
"""All that the client brings; grpcio wants typing-extensions."""

IMPORTS = {
    "cli": "import unmask.cli.main",
    "parquet": "import pyarrow.parquet, unmask.sharing",
    "server": "import unmask_server.serve, unmask_server.cli",
    "oidc": "import unmask_server.access.oidc",
    "otel": "import opentelemetry.sdk.trace, unmask_server.serve",
    "sglang": "import unmask_server.engines.sglang.engine",
    "transformers": "import unmask_server.engines.transformers.engine",
}
"""What works with which extra. `reasoning-gym` has a target of its own; `dev` runs this."""


def uv(*arguments: object, **options: object) -> str:
    command = [sys.executable, ROOT / "tools/uv.py", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, check=False, cwd=cwd
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and with the wheel that was built from the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    uv("build", "--quiet", "--out-dir", folder, ROOT)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (found,) = built.glob("*.whl")
    return found


def installed(folder: Path, wheel: Path, extra: str = "") -> Path:
    """The interpreter of an environment with nothing but the wheel and what it needs."""
    python = folder / "env/bin/python"
    uv("venv", "--quiet", folder / "env")
    what = f"unmask[{extra}] @ {wheel.as_uri()}" if extra else str(wheel)
    constraints = ROOT / "constraints.txt"
    uv("pip", "install", "--quiet", "--python", python, "-c", constraints, what)
    return python


def test_the_wheel_holds_the_packages_and_what_they_read(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(f"unmask-{VERSION}.dist-info/METADATA").decode()
    for path in (ROOT / "proto/unmask").rglob("*.proto"):
        assert f"unmask/{path.relative_to(ROOT)}" in names
    for path in (ROOT / "migrations/versions").glob("*.py"):
        assert f"unmask_server/migrations/versions/{path.name}" in names
    assert {"unmask/py.typed", "unmask_server/py.typed", "unmask_server/contract.binpb"} <= names
    assert f"unmask-{VERSION}.dist-info/licenses/LICENSE" in names
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"unmask", "unmask_server", f"unmask-{VERSION}.dist-info"}
    assert "License-Expression: Apache-2.0" in metadata
    assert not [name for name in names if "__pycache__" in name]


def test_the_sdist_holds_what_the_wheel_is_built_from_and_no_more(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for path in (*(ROOT / "proto/unmask").rglob("*.proto"), ROOT / "migrations/env.py"):
        assert str(path.relative_to(ROOT)) in names
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"client", "server", "proto", "migrations", "pyproject.toml", "constraints.txt",
                    "README.md", "LICENSE", "PKG-INFO", ".gitignore"}  # fmt: skip
    assert not [name for name in names if "__pycache__" in name or name.endswith(".db")]


def test_the_client_brings_grpcio_and_protobuf_only(wheel: Path, tmp_path: Path) -> None:
    python = installed(tmp_path, wheel)
    listed = uv("pip", "freeze", "--python", python)
    assert {line.partition("=")[0].partition(" ")[0] for line in listed.splitlines()} == THIN
    printed = run(
        python, "-c", "import unmask; unmask.Client('x:1'); print(unmask.__version__)", cwd=tmp_path
    )
    assert printed.strip() == VERSION
    # The commands are there, and say what they lack.
    command = tmp_path / "env/bin/unmask"
    done = subprocess.run([command, "--version"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip install 'unmask[cli]'" in done.stderr
    command = tmp_path / "env/bin/unmask-server"
    done = subprocess.run([command, "--version"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip install 'unmask[server]'" in done.stderr


@pytest.mark.parametrize("extra", IMPORTS)
def test_an_extra_brings_what_it_needs(wheel: Path, tmp_path: Path, extra: str) -> None:
    python = installed(tmp_path, wheel, extra)
    run(python, "-c", IMPORTS[extra], cwd=tmp_path)
    if extra != "transformers":
        missing = "import importlib.util; assert importlib.util.find_spec('torch') is None"
        run(python, "-c", missing, cwd=tmp_path)


def test_the_bill_of_materials_lists_the_lock(tmp_path: Path) -> None:
    out = tmp_path / "sbom.json"
    run(sys.executable, "tools/sbom.py", out, cwd=ROOT)
    text = out.read_text()
    bill = json.loads(text)
    assert bill["bomFormat"] == "CycloneDX"
    assert bill["metadata"]["component"]["name"] == "unmask"
    listed = {canonicalize_name(part["name"]): part["version"] for part in bill["components"]}
    locked = (ROOT / "tools/locks/server.txt").read_text()
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+) \\$", locked, re.MULTILINE))
    # Those with a marker may be for other platforms.
    assert len(pinned) > 50
    assert pinned.items() <= listed.items()
    assert all(part["purl"] for part in bill["components"])
    assert "://" not in re.sub(r'"\$schema": "[^"]*"', "", text)


def test_every_extra_is_looked_at() -> None:
    assert {*IMPORTS, "reasoning-gym", "dev"} == PROJECT["optional-dependencies"].keys()


def test_the_server_runs_from_its_wheel_in_any_folder(wheel: Path, tmp_path: Path) -> None:
    python = installed(tmp_path, wheel, "server")
    server = tmp_path / "env/bin/unmask-server"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert run(server, "--version", cwd=elsewhere) == f"unmask-server {VERSION}\n"
    assert run(tmp_path / "env/bin/unmask", "--version", cwd=elsewhere) == f"unmask {VERSION}\n"
    done = run(server, "migrate", "--database", "sqlite:///fresh.db", cwd=elsewhere)
    assert "head" in done
    assert (elsewhere / "fresh.db").exists()
    where = "import unmask_server, unmask; print(unmask_server.__file__, unmask.__file__)"
    assert str(ROOT) not in run(python, "-c", where, cwd=elsewhere)
    serve = [server, "serve", "--database", "sqlite:///fresh.db", "--listen", "unix:socket"]
    with subprocess.Popen(serve, cwd=elsewhere, stderr=subprocess.DEVNULL) as process:
        try:
            answer = run(server, "health", "--address", "unix:socket", "--wait", 60, cwd=elsewhere)
            assert answer == "unix:socket: SERVING\n"
            code = "import unmask; print(unmask.Client('unix:socket').statistics().rollouts)"
            assert run(python, "-c", code, cwd=elsewhere) == "0\n"
        finally:
            process.terminate()
        assert process.wait(20) == 0
