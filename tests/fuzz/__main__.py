"""`python -m tests.fuzz`: see docs/fuzz.md."""

from __future__ import annotations

import argparse
import asyncio
import sys

from tests.fuzz.campaign import Plan, campaign


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--requests", type=int, default=100_000, help="for each store")
    parser.add_argument("--store", action="append", choices=("sqlite", "postgresql"))
    parser.add_argument("--save", default=".unmask/fuzz", help="where bad requests are put")
    parser.add_argument("--page", help="a page whose table is replaced")
    parser.add_argument("--replay", help="a saved request: send it, and say what comes back")
    options = parser.parse_args()
    plan = Plan(
        seed=options.seed,
        requests=options.requests,
        stores=tuple(options.store or ("sqlite", "postgresql")),
        save=options.save,
        page=options.page,
        replay=options.replay,
    )
    return asyncio.run(campaign(plan))


if __name__ == "__main__":
    sys.exit(main())
