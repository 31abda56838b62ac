"""Pruning as a command tells it: what goes, what stays."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from sqlalchemy import Engine

from unmask_server.keeping.prune import (
    Candidate,
    Chosen,
    choose,
    prune_scores,
    prune_trees,
    totals,
)


def run(engine: Engine, chosen: Chosen, *, scores: bool, dry_run: bool) -> Iterator[str]:
    """Prune what is chosen, and yield lines that say what; given `dry_run`, only those.

    Raises:
        ValueError: there is no such policy or question.

    """
    trees, rollouts = totals(engine)
    going: list[Candidate] = []
    for found in choose(engine, chosen):
        if scores:
            going.append(found)
        elif found.is_open:
            yield f"{_named(found)} stays: a growth that has not ended grows it"
        else:
            going.append(found)
            yield (
                f"{_named(found)} goes: {found.rollouts} rollouts of {found.tokens} tokens, "
                f"{found.trajectories} trajectories, the newest of {_day(found.newest)}; "
                "with them every answer about this policy on this question"
            )
    ids = [found.tree_id for found in going]
    if scores:
        gone = 0 if dry_run else prune_scores(engine, ids)
        yield (
            f"scores of the rollouts of {len(ids)} trees go{'' if dry_run else f': {gone} rows'}; "
            "every rollout and every count stays, losses of whole sequences are scored anew"
        )
        return
    held = sum(found.rollouts for found in going)
    yield (
        f"{len(ids)} trees with {held} rollouts go; {trees - len(ids)} with {rollouts - held} "
        "stay, and every answer about them as it is"
    )
    if dry_run:
        yield "nothing was done: --dry-run"
    else:
        yield f"{prune_trees(engine, ids)} rollouts are gone; `vacuum` gives their room back"


def _named(found: Candidate) -> str:
    return f"tree {found.tree_id}, policy {found.policy} on question {found.question},"


def _day(seconds: float | None) -> str:
    if seconds is None:
        return "never"
    return datetime.fromtimestamp(seconds, UTC).date().isoformat()
