"""What is installed, and what the machine has."""

from __future__ import annotations

import os
import re
import resource
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from unmask_server.doctor.finding import Finding, ok, problem, warning

FILES = 4096
"""File descriptors that a busy server may need: one a connection, and more."""
MIB = 2**20
LEAST_MEMORY = 512 * MIB

_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?\s*([^;]*)(?:;(.*))?$")
_EXTRA = re.compile(r"extra\s*==\s*['\"]([^'\"]+)")
_EXTRAS = {"transformers": "embedded models", "sglang": "models on SGLang", "oidc": "auth oidc"}
"""Extras that a server may need, and for what."""


def program() -> Iterator[Finding]:
    """Its version, Python's, and whether what it needs is there in versions that it takes."""
    import unmask

    found = f"{unmask.__version__} on Python {sys.version.split()[0]}"
    wrong = wrong_versions("server")
    if wrong:
        yield problem("unmask", f"{found}; {'; '.join(wrong)}", "pip install 'unmask[server]' anew")
    else:
        yield ok("unmask", found)


def extras(needed: set[str]) -> Iterator[Finding]:
    """The extras, as far as anything needs them.

    Args:
        needed: extras that the settings or what is registered need.

    """
    for extra, purpose in _EXTRAS.items():
        wrong = wrong_versions(extra)
        base = {name for name, _ in _requirements("server")}
        names = [name for name, _ in _requirements(extra) if name not in base]
        if not names:
            continue
        if not wrong:
            yield ok(extra, ", ".join(f"{name} {metadata.version(name)}" for name in names))
        elif extra in needed:
            yield problem(extra, "; ".join(wrong), f"for {purpose}: pip install 'unmask[{extra}]'")
        else:
            yield ok(extra, f"not installed, and not needed (it is for {purpose})")


def wrong_versions(extra: str) -> list[str]:
    """What an extra needs and is not there, or in a version that it does not take."""
    wrong = []
    for name, wanted in _requirements(extra):
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{name} is not installed")
            continue
        if not _is_in(version, wanted):
            wrong.append(f"{name} is {version}, not {wanted}")
    return wrong


def _requirements(extra: str) -> list[tuple[str, str]]:
    """Names and versions of what an extra needs."""
    found = []
    for line in metadata.requires("unmask") or ():
        match = _REQUIREMENT.match(line)
        if match is None:
            continue
        name, wanted, marker = match.groups()
        of = _EXTRA.search(marker or "")
        if name != "unmask" and of and of[1] == extra:
            found.append((name, wanted.strip().strip("()")))
    return found


def _is_in(version: str, wanted: str) -> bool:
    """Whether a version is in a range such as `>=2.8,<3`; what cannot be read is let pass."""
    for part in filter(None, (part.strip() for part in wanted.split(","))):
        match = re.match(r"(>=|<=|==|<|>)\s*([\d.]+)$", part)
        if match is None:
            continue
        operator, limit = match[1], _numbers(match[2])
        have = _numbers(version)
        length = max(len(have), len(limit))
        a, b = (x + (0,) * (length - len(x)) for x in (have, limit))
        if not {">=": a >= b, "<=": a <= b, "==": a == b, "<": a < b, ">": a > b}[operator]:
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", re.split(r"[+a-zA-Z]", version, maxsplit=1)[0])))


def files() -> Iterator[Finding]:
    """How many files may be open at once."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < FILES:
        yield warning(
            "open files",
            f"at most {soft} (ulimit -n)",
            f"each connection is one: raise it to {FILES} or more"
            + (" (`ulimit -n`, LimitNOFILE)" if hard >= FILES else " for this user"),
        )
    else:
        yield ok("open files", f"at most {soft}")


def memory(needed: int) -> Iterator[Finding]:
    """Whether there is room for what the server holds.

    Args:
        needed: bytes of embedded models and of the answers that are kept.

    """
    free = free_memory()
    if free is None:
        return
    found = f"{free // MIB} MiB free; models and kept answers take about {needed // MIB} MiB"
    if free < needed + LEAST_MEMORY:
        yield warning(
            "memory", found, "hold fewer models (max_engines), use bfloat16, or run them on SGLang"
        )
    else:
        yield ok("memory", found)


def free_memory() -> int | None:
    """Bytes that may still be taken: of the machine, or of the container; None: not known."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.split()[1].isdigit()}
    free = kib.get("MemAvailable", 0) * 1024
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        (
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        ),
    ):
        try:
            most = Path(limit).read_text().strip()
            if most != "max":
                free = min(free, int(most) - int(Path(used).read_text()))
        except (OSError, ValueError):
            continue
    return free


def device(name: str) -> Iterator[Finding]:
    """Whether the device of embedded models is there."""
    if name == "cpu":
        yield ok("device", f"cpu, {len(os.sched_getaffinity(0))} cores")
        return
    try:
        import torch

        torch.zeros(1, device=name)
    except ImportError:
        return
    except (RuntimeError, AssertionError) as error:
        yield problem(
            "device", f"{name}: {str(error).splitlines()[0]}", "set `device` to one that is there"
        )
    else:
        yield ok("device", name)
