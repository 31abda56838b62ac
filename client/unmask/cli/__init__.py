"""The `unmask` command. Its packages (extra `cli`) are loaded when it runs, not before."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point."""
    try:
        from unmask.cli.main import app
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        sys.exit(f"error: the command needs {error.name}: pip install 'unmask[cli]'")
    app()
