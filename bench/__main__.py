"""`python -m bench [NAME …] [--table]`: figures of speed, or those named.

Each module prints one line of JSON for each of its figures; they run one after another, those of
speed in some ten minutes on two idle cores. What estimates are worth (docs/estimates.md) takes
longer and is measured only when it is named.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any

MODULES = {
    "client_import": "what `import unmask` costs",
    "cached_alignment": "an answer from memory, over SQLite and PostgreSQL",
    "uncached_alignment": "an answer computed anew",
    "look_up": "how a look-up grows with the database",
    "bytes_per_rollout": "what a rollout takes on the disk, against its tokens",
    "insert_rows": "recording rollouts, in SQLite and PostgreSQL",
    "replicas": "two servers over one database against one, and taking over a dead one's work",
    "sharing": "importing rollouts, and the memory that exports and imports need",
    "server_memory": "a server's memory, idle and with 100,000 rollouts",
    "transformers_engine": "the embedded engine against `generate`",
    "sglang_engine": "the SGLang engine against bare requests (make sglang-cpu first)",
}
LONGER = {
    "lookup_million": "a look-up among a million rollouts (ten minutes)",
}
ESTIMATES = {
    "allocation": "rollouts that a precision takes, against simple allocations (five minutes)",
    "forecasts": "whether a cost was known before, on the shipped models (ten minutes)",
    "selection": "what choosing by an estimate does to it, and what the posterior says (a minute)",
    "coverage": "how often 90% intervals hold the truth (twenty minutes)",
}


def main() -> int:
    """Run the modules named, all by default."""
    parser = argparse.ArgumentParser(description=__doc__)
    listed = ", ".join(f"{name} ({what})" for name, what in (MODULES | LONGER | ESTIMATES).items())
    parser.add_argument("names", nargs="*", metavar="NAME", help=listed)
    parser.add_argument("--table", action="store_true", help="print a table in Markdown instead")
    options = parser.parse_args()
    unknown = set(options.names) - set(MODULES | LONGER | ESTIMATES)
    if unknown:
        parser.error(f"no such figure: {', '.join(sorted(unknown))}")
    failed = False
    if options.table:
        print("| figure | value | baseline | ratio (range, n) | goal |\n|---|---|---|---|---|")
    for name in options.names or MODULES:
        with subprocess.Popen(
            [sys.executable, "-m", f"bench.{name}"], stdout=subprocess.PIPE, text=True
        ) as module:
            assert module.stdout is not None
            for line in module.stdout:
                if line.startswith("{"):
                    print(_row(json.loads(line)) if options.table else line.rstrip(), flush=True)
        failed |= module.returncode != 0
    return int(failed)


def _row(found: dict[str, Any]) -> str:
    if "skipped" in found:
        return f"| {found['name']} | skipped: {found['skipped']} | | | |"
    ratio, goal = found["ratio"], found["goal"]
    wanted = ""
    if found["direction"] == "within":
        missed = not goal[0] <= found["value"] <= goal[1]
        wanted = f"value in {goal[0]:g} to {goal[1]:g}" + (" **missed**" if missed else "")
    elif goal is not None:
        is_up = found["direction"] == "up"
        missed = ratio < goal if is_up else ratio > goal
        wanted = f"{'≥' if is_up else '≤'} {goal:g}" + (" **missed**" if missed else "")
    return (
        f"| {found['name']} | {found['value']:g} {found['unit']} | {found['baseline']:g} | "
        f"{ratio:g} ({found['low']:g} to {found['high']:g}, {found['n']}) | {wanted} |"
    )


if __name__ == "__main__":
    sys.exit(main())
