"""`python -m tests.fuzz`: see docs/fuzz.md."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from tests.fuzz.campaign import Plan, campaign
from tests.stores import STORES


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--requests", type=int, default=50_000, help="for each store")
    parser.add_argument("--connections", type=int, default=400, help="raw ones, for each store")
    parser.add_argument("--minutes", type=float, default=60.0, help="then no more are begun")
    parser.add_argument("--store", action="append", choices=STORES, help="both by default")
    parser.add_argument("--save", type=Path, default=Path(".unmask/fuzz"), help="of bad requests")
    parser.add_argument("--page", type=Path, help="whose tables are replaced")
    parser.add_argument("--replay", type=Path, help="a saved request: send it to a new server")
    given = parser.parse_args()
    stores = tuple(given.store or STORES)
    plan = Plan(
        seed=given.seed,
        requests=given.requests,
        connections=given.connections,
        minutes=given.minutes,
        stores=stores,
        save=given.save,
        page=given.page,
        replay=given.replay,
    )
    return asyncio.run(campaign(plan))


if __name__ == "__main__":
    sys.exit(main())
