"""docs/clients.md as a program: the commands of each section, run as they stand."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "clients.md"
PACKAGES = "apt-get install -y "


@dataclass(frozen=True, slots=True)
class Section:
    """What a section tells to do."""

    packages: tuple[str, ...]
    """Debian's."""
    folder: Path
    """Where the commands go."""
    build: str
    """A shell script."""
    run: str
    """Another."""
    others: dict[str, str]
    """More commands, by their names."""


def section(title: str) -> Section:
    """The section under a heading."""
    page = GUIDE.read_text(encoding="utf-8")
    _, found, text = page.partition(f"\n## {title}\n")
    assert found, f"{GUIDE.name} has no section {title!r}"
    text = text.partition("\n## ")[0]
    blocks = re.findall(r"^```sh ?(.*?)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    packages = [line for _, line in blocks if line.startswith(PACKAGES)]
    unnamed = [body for name, body in blocks if not name and not body.startswith(PACKAGES)]
    build, run = unnamed
    first, _, rest = build.partition("\n")
    assert first.startswith("cd "), first
    return Section(
        packages=tuple(name for line in packages for name in line.split()[3:]),
        folder=ROOT / first.removeprefix("cd "),
        build=rest,
        run=run,
        others={name: body for name, body in blocks if name},
    )


def needs(*programs: str) -> None:
    """Skip, or in CI fail, where a program is missing."""
    missing = [program for program in programs if shutil.which(program) is None]
    if not missing:
        return
    message = f"{', '.join(missing)}: not installed; as root, `make client-packages` installs it"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


def shell(
    script: str, folder: Path, *, fails: bool = False, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a script as a user would, but that every failing line ends it."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("UNMASK_", "PYTHON"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env={**inherited, "PATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert (done.returncode != 0) is fails, f"{script}\n{done.stdout}\n{done.stderr}"
    return done
