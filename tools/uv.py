"""Run uv, which pip fetches first where it is missing. It installs in a tenth of pip's time.

    python3 tools/uv.py ARGUMENTS OF UV

uv does not read pip's settings. Those that say where packages are go on to it, so that a machine
that was told once of a mirror, a folder of wheels or a certificate needs not be told again.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HOME = ROOT / "build/uv"
UV = HOME / "bin/uv"

SCOPES = ("global", "install", ":env:")
"""Of pip's settings; later ones are stronger."""

NAMES = {
    "index-url": "UV_DEFAULT_INDEX",
    "find-links": "UV_FIND_LINKS",
    "cert": "SSL_CERT_FILE",
}
"""What pip calls a setting, and uv's variable for it."""


def of_pip(listing: str) -> dict[str, str]:
    """The variables for uv from what `pip config list` prints."""
    found = {}
    for scope in SCOPES:
        for line in listing.splitlines():
            name, _, value = line.partition("=")
            variable = NAMES.get(name.removeprefix(f"{scope}."))
            if name.startswith(f"{scope}.") and variable:
                text = str(ast.literal_eval(value))
                found[variable] = ",".join(text.split()) if variable == "UV_FIND_LINKS" else text
    return found


def pip(*arguments: str) -> str:
    """Run the pip beside uv. Returns what it prints."""
    command = [HOME / "bin/python", "-m", "pip", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def main() -> None:
    """Become uv."""
    if not UV.exists():
        venv.create(HOME, clear=True, with_pip=True)
        pip("install", "--quiet", "-c", str(ROOT / "constraints.txt"), "uv")
    # The interpreter is the one that runs this, and none is downloaded.
    ours = {"UV_PYTHON": sys.executable, "UV_PYTHON_DOWNLOADS": "never", "UV_NO_CONFIG": "1"}
    environment = {**ours, **of_pip(pip("config", "list")), **os.environ}
    os.execve(UV, [str(UV), *sys.argv[1:]], environment)


if __name__ == "__main__":
    main()
