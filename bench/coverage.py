"""How often 90% intervals hold the truth: `python -m bench.coverage [--table]`.

At nodes whose success is known, in every setting (population, candidates, rollouts, allocation)
rollouts are drawn, the posterior that is served is made of them, and its intervals are compared
with the truth. Populations: random nodes of five kinds (`coverage_nodes`), enumerable models whose
values are exact (`coverage_chain`), and the shipped student (`coverage_student`).

The student's truth is a share among a finite pool of rollouts. Rollouts of this run are drawn from
the same pool, with replacement, so that for them the share *is* the truth: its error cannot cost
coverage. What the error does is make tokens a little less alike than they are: by 0.009 as
two runs measured it for ten tokens, at most by 0.022 (512 rollouts; after tokens rarer than 1 in
100 there are 128: 0.044).

Coverage is the mean over nodes. Its interval resamples nodes, and for the student questions. Priors
were chosen on other nodes (`--choosing`) than are reported.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from unmask_server.diagnosis import HierarchicalPosterior, JeffreysPosterior, SuccessPosterior

from bench.coverage_chain import chain_node
from bench.coverage_held import QUANTITIES, Share, held, share
from bench.coverage_nodes import ALLOCATIONS, Node, random_node, rolled_out
from bench.coverage_student_file import PATH, load
from bench.figures import BAND, share_figure, show

KINDS = ("exchangeable", "likelier_better", "likelier_worse", "atoms", "informed")
POPULATIONS = (*KINDS, "enumerable", "student")
CANDIDATES = (2, 8, 50)
ROLLOUTS = (0, 1, 2, 5, 32, 128, 512)
"""In all, at a node."""
PRIORS: dict[str, SuccessPosterior] = {
    "hierarchical": HierarchicalPosterior(),
    "jeffreys": JeffreysPosterior(),
}
REPORTED, CHOSEN_ON = 100_000, 10_000
"""First seeds of the nodes that are reported and of those that priors were chosen on."""
QUESTIONS_CHOSEN_ON = 10
"""The student's nodes of so many questions, likewise."""


@dataclass(frozen=True)
class Row:
    """Of one node in one setting."""

    population: str
    candidates: int
    rollouts: int
    allocation: str
    cluster: str
    held: tuple[float, ...]
    """In the order of `QUANTITIES`."""


@dataclass(frozen=True)
class Plan:
    """What is run."""

    populations: Sequence[str] = POPULATIONS
    candidates: Sequence[int] = CANDIDATES
    rollouts: Sequence[int] = ROLLOUTS
    allocations: Sequence[str] = ("policy", "equal", "adaptive", "stopping")
    nodes: int = 200
    """In each setting; of the student those that there are, if fewer."""
    choosing: bool = False
    """On the nodes that priors are chosen on."""
    prior: str = "hierarchical"
    truth: Path = PATH


def nodes_of(plan: Plan, population: str, m: int) -> list[Node]:
    """The nodes of a population with (at most) `m` candidates."""
    if population == "student":
        questions = range(QUESTIONS_CHOSEN_ON) if plan.choosing else range(QUESTIONS_CHOSEN_ON, 999)
        return [node.narrowed(m) for node in load(plan.truth, questions)][: plan.nodes]
    make = chain_node if population == "enumerable" else partial(random_node, kind=population)
    first = CHOSEN_ON if plan.choosing else REPORTED
    return [make(seed, m) for seed in range(first, first + plan.nodes)]


def run(plan: Plan, population: str, m: int) -> list[Row]:
    """All settings of a population and a number of candidates."""
    rows = []
    for place, node in enumerate(nodes_of(plan, population, m)):
        for rollouts in plan.rollouts:
            # Without rollouts there is nothing to allocate.
            for name in plan.allocations if rollouts else plan.allocations[:1]:
                rng = np.random.default_rng((place, rollouts, 7))
                counts = rolled_out(node, rollouts, ALLOCATIONS[name], rng)
                found = held(node, counts, PRIORS[plan.prior], seed=place)
                row = Row(population, m, rollouts, name, node.cluster, tuple(found.tolist()))
                rows.append(row)
    return rows


def run_all(plan: Plan, workers: int = 1) -> list[Row]:
    """Every population, with all numbers of candidates."""
    # The longest first.
    jobs = [(plan, name, m) for m in sorted(plan.candidates)[::-1] for name in plan.populations]
    if workers < 2:
        return [row for job in jobs for row in run(*job)]
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        waiting = [pool.apply_async(run, job) for job in jobs]
        return [row for result in waiting for row in result.get()]


def shares(rows: Iterable[Row], by: Sequence[str]) -> dict[tuple[Any, ...], list[Share | None]]:
    """Coverage of every quantity, by fields of `Row`."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(getattr(row, name) for name in by), []).append(row)
    return {
        key: [
            share([row.held[q] for row in group], [row.cluster for row in group])
            for q in range(len(QUANTITIES))
        ]
        for key, group in groups.items()
    }


def table(rows: Sequence[Row], by: Sequence[str]) -> str:
    """Markdown, in percent; bold where the coverage's whole interval is outside of the band."""
    lines = [f"| {' | '.join((*by, *QUANTITIES))} |", "|---" * (len(by) + len(QUANTITIES)) + "|"]
    found = shares(rows, by)
    for key in sorted(found, key=_order):
        cells = [*map(str, key), *map(_cell, found[key])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _order(key: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(POPULATIONS.index(part) if part in POPULATIONS else part for part in key)


def _cell(found: Share | None) -> str:
    if found is None:
        return ""
    text = f"{100 * found.value:.1f}"
    outside = found.high < BAND[0] or found.low > BAND[1]
    return f"**{text}**" if outside else text


SUMMARIES = (
    ("population",),
    ("population", "rollouts"),
    ("population", "candidates"),
    ("population", "allocation"),
)


def main() -> int:
    """Print figures or tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=200, help="in each setting")
    parser.add_argument("--table", action="store_true", help="print tables in Markdown instead")
    parser.add_argument("--all", action="store_true", help="every setting by itself, too")
    parser.add_argument("--truth-file", type=Path, default=PATH, help="made if it is not there")
    parser.add_argument("--populations", nargs="+", choices=POPULATIONS, default=POPULATIONS)
    parser.add_argument("--allocations", nargs="+", choices=ALLOCATIONS, default=[*ALLOCATIONS])
    parser.add_argument("--rollouts", nargs="+", type=int, default=ROLLOUTS)
    parser.add_argument("--candidates", nargs="+", type=int, default=CANDIDATES)
    parser.add_argument("--prior", choices=PRIORS, default="hierarchical")
    parser.add_argument("--choosing", action="store_true", help="the nodes priors are chosen on")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    if "student" in options.populations and not options.truth_file.exists():
        from bench.coverage_student import make

        print(f"making {options.truth_file}", file=sys.stderr)
        make(options.truth_file, workers=options.workers)
    plan = Plan(
        options.populations,
        options.candidates,
        options.rollouts,
        options.allocations,
        options.nodes,
        options.choosing,
        options.prior,
        options.truth_file,
    )
    rows = run_all(plan, options.workers)
    cells = [("population", "candidates", "rollouts", "allocation")] if options.all else []
    if options.table:
        print("\n\n".join(table(rows, by) for by in (*SUMMARIES, *cells)))
        return 0
    for by in (SUMMARIES[0], *cells):
        for key, values in shares(rows, by).items():
            for quantity, found in zip(QUANTITIES, values, strict=True):
                if found is not None:
                    name = "_".join(("coverage", *map(str, key), quantity))
                    show(share_figure(name, found.value, found.low, found.high, found.n))
    return 0


if __name__ == "__main__":
    sys.exit(main())
