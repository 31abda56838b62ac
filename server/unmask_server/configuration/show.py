"""Settings as a table, as JSON and as a file to begin with; secrets are not shown."""

from __future__ import annotations

import json
import re
import textwrap
from typing import Any

from pydantic import SecretStr
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from unmask_server.config import Settings
from unmask_server.configuration.groups import in_groups
from unmask_server.configuration.loading import DEFAULT, Loaded

MASK = "***"
_WIDTH = 88

_IN_URL = re.compile(r"(?<=://)([^/@\s:]*):([^/@\s]*)@")
_IN_QUERY = re.compile(r"(?i)([?&](?:password|sslpassword|token|key)=)[^&\s]*")
_IN_ARGUMENTS = re.compile(r"(?i)(--[\w-]*(?:api-key|token|secret|password)[= ])\S+")


def masked(value: Any) -> Any:
    """A value with what is secret in it taken out."""
    if isinstance(value, SecretStr):
        return MASK if value.get_secret_value() else ""
    if isinstance(value, dict):
        return {key: masked(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [masked(item) for item in value]
    if not isinstance(value, str):
        return value if value is None or isinstance(value, bool | int | float) else str(value)
    value = _IN_URL.sub(rf"\1:{MASK}@", value)
    value = _IN_QUERY.sub(rf"\1{MASK}", value)
    return _IN_ARGUMENTS.sub(rf"\1{MASK}", value)


def shown(name: str, value: Any) -> str:
    """A setting's value in a line, as the environment or a flag would give it."""
    value = masked(value)
    if isinstance(value, dict):
        return ", ".join(f"{key}={item}" for key, item in value.items())
    if isinstance(value, list):
        return ("; " if name == "sglang_launch" else ", ").join(map(str, value))
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def to_json(loaded: Loaded) -> dict[str, Any]:
    """The effective settings, each with its source."""
    return {
        "file": None if loaded.file is None else str(loaded.file),
        "settings": {
            name: {"value": masked(getattr(loaded.settings, name)), "source": loaded.sources[name]}
            for name in Settings.model_fields
        },
    }


def print_table(loaded: Loaded, console: Console) -> None:
    """The effective settings with their sources; what somebody set stands out."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("setting", no_wrap=True)
    for heading in ("value", "source"):
        table.add_column(heading, overflow="fold")
    for heading, names in in_groups(list(Settings.model_fields)):
        table.add_row(f"[bold]{heading}[/bold]")
        for name in names:
            source = loaded.sources[name]
            style = "dim" if source == DEFAULT else "green"
            value = shown(name, getattr(loaded.settings, name))
            table.add_row(
                f"  {name}", escape(value) or "[dim]-[/dim]", f"[{style}]{escape(source)}[/{style}]"
            )
    console.print(table)
    read = f"file: {loaded.file}" if loaded.file else "no file was read"
    console.print(f"[dim]{read}; flags go before the environment, that before the file[/dim]")


def example() -> str:
    """A file with every setting at its default, each commented out."""
    lines = [
        "# Settings of an Unmask server. What is commented out is the default.",
        "# Flags (--max-batch 64) and the environment (UNMASK_MAX_BATCH=64) go before this file.",
    ]
    for heading, names in in_groups(list(Settings.model_fields)):
        lines += ["", f"# ---- {heading} " + "-" * (_WIDTH - len(heading) - 9)]
        for name in names:
            field = Settings.model_fields[name]
            lines += ["", *(f"# {line}" for line in textwrap.wrap(field.description or "", _WIDTH))]
            default = masked(field.get_default(call_default_factory=True))
            value = "  # not set" if default is None else f" {_toml(default)}"
            lines.append(f"# {name} ={value}")
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        pairs = (f"{json.dumps(key)} = {_toml(item)}" for key, item in value.items())
        return f"{{ {', '.join(pairs)} }}"
    return json.dumps(value)
