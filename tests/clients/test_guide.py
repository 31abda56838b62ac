"""What docs/clients.md and the examples promise, without building anything."""

from __future__ import annotations

import json
import re

import pytest

from tests.clients.guide import GUIDE, ROOT, section
from tests.clients.test_languages import LANGUAGES

EXAMPLES = ROOT / "examples" / "clients"


@pytest.mark.parametrize("title", [*LANGUAGES, "A page in a browser"])
def test_every_section_says_how_to_build_and_to_run(title: str) -> None:
    told = section(title)
    assert told.folder.is_dir()
    assert told.run.strip()


def test_the_guide_links_to_files_that_are_there() -> None:
    for link in re.findall(r"\]\((?!http)([^)#]+)", GUIDE.read_text(encoding="utf-8")):
        assert (GUIDE.parent / link).exists(), link


@pytest.mark.parametrize("name", ["typescript", "browser"])
def test_locked_packages_come_from_whatever_registry_a_user_has(name: str) -> None:
    packages = json.loads((EXAMPLES / name / "package-lock.json").read_text())["packages"]
    assert all("resolved" not in package for package in packages.values())
    assert all("integrity" in package for path, package in packages.items() if path)
