"""`python -m unmask_server` is `unmask-server`."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point."""
    try:
        from unmask_server.cli import app
    except ModuleNotFoundError as error:
        if str(error.name).startswith("unmask"):
            raise
        sys.exit(f"error: the server needs {error.name}: pip install 'unmask[server]'")
    app()


if __name__ == "__main__":
    main()
