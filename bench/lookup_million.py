"""How long a look-up takes among a million rollouts over one of 1,000: as `look_up`, in minutes."""

from __future__ import annotations

from bench.look_up import EACH, compare

MILLION = 1_000_000


def main() -> None:
    compare(MILLION // EACH, lambda count: f"lookup_million_{count}")


if __name__ == "__main__":
    main()
