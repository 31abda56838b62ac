"""The locks hold what pyproject.toml asks for, at the versions that are tested, with hashes."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCKS = ROOT / "tools/locks"
LINUX = {
    "sys_platform": "linux",
    "platform_system": "Linux",
    "platform_machine": "x86_64",
    "platform_python_implementation": "CPython",
    "implementation_name": "cpython",
    "python_version": "3.11",
    "python_full_version": "3.11.7",
}
EXTRAS = {
    "server": ["sglang", "oidc", "otel"],
    "transformers": ["sglang", "oidc", "otel", "transformers"],
}
"""What each is made for; the Makefile's `lock` says the same."""

NOT_LOCKED = {"torch"}
"""The platform's own build."""


def locked(name: str) -> Iterator[tuple[Requirement, list[str]]]:
    """Requirements of a lock, each with its hashes."""
    text = (LOCKS / f"{name}.txt").read_text().replace("\\\n", " ")
    for line in text.splitlines():
        if line and not line.startswith("#"):
            requirement, *hashes = line.split("--hash=")
            yield Requirement(requirement), [digest.strip() for digest in hashes]


def pins(lines: Iterator[Requirement]) -> dict[str, str]:
    return {
        canonicalize_name(line.name): str(line.specifier).removeprefix("==")
        for line in lines
        if line.marker is None or line.marker.evaluate(LINUX)
    }


def constrained() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return pins(Requirement(line) for line in lines if line and not line.startswith("#"))


def asked_for(extras: list[str]) -> Iterator[Requirement]:
    """What pyproject.toml asks for with these extras, and with those that they bring."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    yield from map(Requirement, project["dependencies"])
    for extra in extras:
        for line in map(Requirement, project["optional-dependencies"][extra]):
            if line.name == project["name"]:
                yield from asked_for(sorted(line.extras))
            else:
                yield line


@pytest.mark.parametrize("name", EXTRAS)
def test_a_lock_covers_what_is_asked_for(name: str) -> None:
    have = pins(requirement for requirement, _ in locked(name))
    for line in asked_for(EXTRAS[name]):
        if line.name not in NOT_LOCKED:
            version = have.get(canonicalize_name(line.name))
            assert version is not None, f"{line} is not in the lock: make lock"
            assert line.specifier.contains(version), f"{line}, but {version}: make lock"
    assert not NOT_LOCKED & have.keys()


@pytest.mark.parametrize("name", EXTRAS)
def test_a_lock_holds_what_is_tested(name: str) -> None:
    versions = constrained()
    have = pins(requirement for requirement, _ in locked(name))
    assert have == {package: versions.get(package) for package in have}, "make lock"


@pytest.mark.parametrize("name", [*EXTRAS, "build"])
def test_a_lock_says_what_exactly_and_not_from_where(name: str) -> None:
    for requirement, hashes in locked(name):
        assert re.fullmatch(r"==[^*,]+", str(requirement.specifier)), requirement
        assert hashes, requirement
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", digest) for digest in hashes)
        assert requirement.url is None
    assert "://" not in (LOCKS / f"{name}.txt").read_text()
