"""Take the figures: `python -m bench [NAME…] [--table] [--quick]`."""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

from bench.figures import Figure, SkippedError, table

REPETITIONS = 7
QUICK_REPETITIONS = 2


@dataclass(frozen=True, slots=True)
class Group:
    """Figures that are taken together."""

    name: str
    about: str
    """What is measured over what."""

    def measure(self, repetitions: int) -> Iterator[Figure]:
        """Take them.

        Raises:
            SkippedError: they cannot be taken here.

        """
        # Imported late: what one group needs must not cost another one time or memory.
        module = importlib.import_module(f"bench.{self.name}")
        yield from module.measure(repetitions)


GROUPS = {
    group.name: group
    for group in (
        Group("insert_rows", "recording rollouts over a bulk insertion of the same rows"),
        Group("transformers_engine", "rollouts of the embedded engine over plain `generate`"),
    )
}


def main() -> None:
    """Print each figure as a line of JSON when it is there, or all as a table at the end."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(GROUPS))
    parser.add_argument("--table", action="store_true", help="a table in Markdown, at the end")
    parser.add_argument("--quick", action="store_true", help="few repetitions, to try it out")
    options = parser.parse_args()
    if unknown := [name for name in options.names if name not in GROUPS]:
        parser.error(f"no figures named {', '.join(unknown)}; there are {', '.join(GROUPS)}")
    figures = []
    for name in options.names or GROUPS:
        begin = time.perf_counter()
        try:
            for figure in GROUPS[name].measure(QUICK_REPETITIONS if options.quick else REPETITIONS):
                figures.append(figure)
                if not options.table:
                    print(figure.line(), flush=True)
        except SkippedError as reason:
            print(f"{name}: skipped: {reason}", file=sys.stderr, flush=True)
        print(f"{name}: {time.perf_counter() - begin:.0f} s", file=sys.stderr, flush=True)
    if options.table:
        print(table(figures))


if __name__ == "__main__":
    main()
