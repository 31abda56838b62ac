"""Write a software bill of materials (CycloneDX, JSON) of what a lock installs.

    python3 tools/sbom.py OUT.json [server|transformers]

It says versions, licences and what needs what, read from an environment that is made for it. Links
that packages give in their descriptions are left out: the package URLs name the packages.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = ROOT / "build/sbom"
CYCLONEDX = "cyclonedx-bom==7.5.0"


def uv(*arguments: object) -> None:
    """Run uv in the project's folder."""
    subprocess.run(
        [sys.executable, ROOT / "tools/uv.py", *map(str, arguments)], check=True, cwd=ROOT
    )


def without_links(value: Any) -> Any:
    """The same without external references."""
    match value:
        case dict():
            kept = {name: item for name, item in value.items() if name != "externalReferences"}
            return {name: without_links(item) for name, item in kept.items()}
        case list():
            return [without_links(item) for item in value]
    return value


def main(out: str, lock: str = "server") -> None:
    """Make the environment, then the bill."""
    install = ("pip", "install", "--quiet", "--no-deps", "--python", ENVIRONMENT)
    uv("venv", "--quiet", "--clear", ENVIRONMENT)
    uv(*install, "--require-hashes", "-r", f"tools/locks/{lock}.txt")
    uv(*install, ".")
    uv(
        "tool", "run", "--quiet", "--from", CYCLONEDX, "cyclonedx-py", "environment",
        "--output-reproducible", "--pyproject", "pyproject.toml", "-o", out, ENVIRONMENT,
    )  # fmt: skip
    path = ROOT / out
    path.write_text(json.dumps(without_links(json.loads(path.read_text())), indent=2) + "\n")
    print(f"{out}: {len(json.loads(path.read_text())['components'])} components")


if __name__ == "__main__":
    main(*sys.argv[1:])
