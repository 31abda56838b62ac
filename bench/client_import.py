"""Wall time of `python -c 'import unmask'` in a fresh process over `import grpc` in another.

`import unmask` alone imports nothing; what is measured is a client that could make a call.
"""

from __future__ import annotations

import subprocess
import sys
import time

from bench.figures import figure, show

ROUNDS = 15


def seconds(code: str) -> float:
    """Of a process that runs `code`."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - begun


def main() -> None:
    for name, code in (
        ("client_import", "import unmask"),
        ("client_import_and_class", "import unmask; unmask.Client"),
    ):
        seconds(code)
        seconds("import grpc")
        ours, theirs = [], []
        for _ in range(ROUNDS):
            ours.append(seconds(code))
            theirs.append(seconds("import grpc"))
        show(figure(name, "s", ours, theirs, goal=1.3, direction="down"))


if __name__ == "__main__":
    main()
