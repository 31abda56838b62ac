"""Settings out of flags, the environment and a file, and which of them said what.

Flags go before the environment (`UNMASK_…`), that before the file (TOML), that before the defaults.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
from pydantic import ValidationError
from pydantic_settings import EnvSettingsSource, SettingsConfigDict

from unmask_server.config import Settings

VARIABLE = "UNMASK_CONFIG"
"""Names the file, where no flag does; empty: none."""
DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class Loaded:
    """The settings in effect."""

    settings: Settings
    sources: Mapping[str, str]
    """Where each setting's value is from: `flag --…`, `environment UNMASK_…`, `file …` or
    `default`."""
    file: Path | None
    """The file that was read."""


def default_files() -> tuple[Path, ...]:
    """Where a file is looked for if none is named: the first one that is there is read."""
    return (
        platformdirs.user_config_path("unmask") / "server.toml",
        Path("/etc/unmask/server.toml"),
    )


def flag(name: str) -> str:
    """The flag of a setting."""
    return "--" + name.replace("_", "-")


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return f"UNMASK_{name.upper()}"


def load(flags: Mapping[str, Any] | None = None, config: str | None = None) -> Loaded:
    """The settings in effect.

    Args:
        flags: values by setting, of those that were given on the command line.
        config: path of a file; empty: none; None: the one that `UNMASK_CONFIG` names, else the
            first of `default_files`, if there is one.

    Raises:
        OSError: a file that was named cannot be read.
        ValueError: a value is none, or the file is no TOML or has a key that there is not; says
            which, and where it stands.

    """
    flags = {name: value for name, value in (flags or {}).items() if value is not None}
    file = _file(config)
    in_file = _read(file) if file else {}
    in_environment = EnvSettingsSource(Settings)()
    sources = {}
    for name in Settings.model_fields:
        if name in flags:
            sources[name] = f"flag {flag(name)}"
        elif name in in_environment:
            sources[name] = f"environment {variable(name)}"
        else:
            sources[name] = f"file {file}" if name in in_file else DEFAULT

    class WithFile(Settings):
        model_config = SettingsConfigDict(toml_file=file)

    try:
        settings = WithFile(**flags)
    except ValidationError as error:
        lines = []
        for found in error.errors():
            name = str(found["loc"][0]) if found["loc"] else ""
            at = ".".join(map(str, found["loc"]))
            where = sources.get(name, DEFAULT)
            lines.append(f"{at}{'' if where == DEFAULT else f' ({where})'}: {found['msg']}")
        raise ValueError("; ".join(lines)) from None
    return Loaded(settings, sources, file)


def _file(config: str | None) -> Path | None:
    if config is None:
        config = os.environ.get(VARIABLE)
    if config is not None:
        return Path(config).expanduser() if config else None
    return next((path for path in default_files() if path.is_file()), None)


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            found = tomllib.load(file)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: no TOML: {error}") from None
    for key in found:
        if key not in Settings.model_fields:
            raise ValueError(f"{path}: there is no setting {key!r}{nearest(key)}")
    return found


def nearest(key: str) -> str:
    """Which setting may have been meant, to end a message with."""
    normal = key.lower().replace("-", "_").removeprefix("unmask_")
    close = difflib.get_close_matches(normal, Settings.model_fields, 1)
    return f"; did you mean {close[0]!r}?" if close else "; `unmask-server config` lists them"
