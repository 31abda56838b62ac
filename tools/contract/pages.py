"""Writes the pages that are made from the contract and the code.

    python -m tools.contract.pages [--check]

docs/api/ is made from proto/, and the table of docs/errors.md from the server's reasons. With
--check nothing is written: it fails where a page is not current.
"""

from __future__ import annotations

import argparse
import sys

from tools.contract.reasons import with_table
from tools.contract.reference import pages
from tools.contract.source import ROOT, read_source

DOCS = ROOT / "docs"


def wanted() -> dict[str, str]:
    """The pages by their paths in docs/."""
    reference = {f"api/{name}": text for name, text in pages(read_source()).items()}
    errors = (DOCS / "errors.md").read_text()
    return {**reference, "errors.md": with_table(errors)}


def main() -> None:
    """Write or check."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    made = wanted()
    there = {f"api/{path.name}" for path in (DOCS / "api").glob("*.md")} | {"errors.md"}
    stale = sorted(there - made.keys())
    for name, text in made.items():
        path = DOCS / name
        if path.exists() and path.read_text() == text:
            continue
        stale.append(name)
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    if check and stale:
        sys.exit(f"not current: {', '.join('docs/' + name for name in stale)}; run make pages")


if __name__ == "__main__":
    main()
