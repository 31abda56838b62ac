"""What must hold after whatever happened: the stored against the answered and the acknowledged."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, func, select
from unmask_server.database.connect import open_database, read
from unmask_server.database.schema import (
    growth,
    outcome,
    rollout,
    trajectory,
    trajectory_outcome,
    tree,
)
from unmask_server.growth.flushing import FLUSH_ROLLOUTS
from unmask_server.growth.recorder import FINISH_CODES, seed_of
from unmask_server.tree import StoredRollout, TreeStore, fsck
from unmask_server.tree.tokens import unpack

from tests.chaos.team import Team

_CODES = {reason.value: code for reason, code in FINISH_CODES.items()}


@dataclass
class Account:
    """What was found of one store."""

    answered: int = 0
    """Different rollouts that engines answered."""
    committed: int = 0
    """Rollouts in the database."""
    lost: int = 0
    """Answered, not committed, and asked for no more."""
    doubled: int = 0
    """Rollouts that are in the database twice."""
    uncharged: int = 0
    """Of growths: stored without being charged to it, since its lease was lost meanwhile."""
    acknowledged: int = 0
    """Rollouts of which clients were told that they are stored."""
    violations: list[str] = field(default_factory=list)


def audit(team: Team, *, allowed_lost: int = 0, allowed_over: int = FLUSH_ROLLOUTS) -> Account:
    """Compare a team's store with what its engines answered and its clients were told.

    Args:
        team: whose servers do nothing any more.
        allowed_lost: rollouts that may have been in flight when something was killed.
        allowed_over: rollouts by which a growth may have exceeded its budget.

    """
    engine = open_database(team.url)
    try:
        account = Account()
        answered = read_answered(team.answered)
        stored = _stored(engine, account)
        _compare(answered, stored, account)
        if account.lost > allowed_lost:
            account.violations.append(f"{account.lost} lost, {allowed_lost} may be")
        _trajectories(engine, team, stored, account)
        _growths(engine, team, allowed_over, account)
        return account
    finally:
        engine.dispose()


def read_answered(path: Path) -> dict[int, dict[str, Any]]:
    """What engines answered, by the rollout's seed."""
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {line["seed"]: line for line in lines}


def _stored(engine: Engine, account: Account) -> dict[int, StoredRollout]:
    """All rollouts of all trees, by their seeds; the trees are checked on the way."""
    with read(engine) as connection:
        trees = connection.scalars(select(tree.c.id)).all()
        count = select(func.count()).select_from(rollout)
        account.committed = connection.execute(count).scalar_one()
        orphans = select(outcome.c.rollout_id).where(
            ~select(rollout.c.id).where(rollout.c.id == outcome.c.rollout_id).exists()
        )
        if connection.execute(orphans.limit(1)).first():
            account.violations.append("an outcome has no rollout")
    account.violations += map(str, fsck(engine).findings)
    store = TreeStore(engine)
    seeds: Counter[int] = Counter()
    found: dict[int, StoredRollout] = {}
    for tree_id in trees:
        for stored in store.iter_rollouts(tree_id, 0, 10**9):
            seeds[seed_of(stored.uid)] += 1
            found[seed_of(stored.uid)] = stored
    account.doubled = sum(times - 1 for times in seeds.values())
    if account.doubled:
        account.violations.append(f"{account.doubled} rollouts are there twice")
    if sum(seeds.values()) != account.committed:
        account.violations.append("rollouts belong to no tree")
    return found


def _compare(
    answered: dict[int, dict[str, Any]], stored: dict[int, StoredRollout], account: Account
) -> None:
    account.answered = len(answered)
    account.lost = len(answered.keys() - stored.keys())
    rewards: dict[tuple[Any, ...], dict[int, float]] = {}
    for seed, kept in stored.items():
        said = answered.get(seed)
        if said is None:
            account.violations.append(f"rollout {kept.id} was never answered")
        elif (list(kept.tokens), kept.forced_depth, kept.finish) != (
            said["tokens"],
            said["forced"],
            _CODES[said["finish"]],
        ):
            account.violations.append(f"rollout {kept.id} is not what was answered")
        if rewards.setdefault((kept.tokens, kept.finish), kept.rewards) != kept.rewards:
            account.violations.append(f"rollout {kept.id} is graded otherwise than its like")


def _trajectories(
    engine: Engine, team: Team, stored: dict[int, StoredRollout], account: Account
) -> None:
    with read(engine) as connection:
        rows = {
            row.id: row
            for row in connection.execute(
                select(
                    trajectory.c.id,
                    trajectory.c.tokens,
                    trajectory.c.rollout_uid,
                    trajectory_outcome.c.reward,
                ).join(trajectory_outcome, trajectory_outcome.c.trajectory_id == trajectory.c.id)
            )
        }
    for id_, (tokens, reward) in team.acknowledged.items():
        row = rows.get(id_)
        if row is None or unpack(row.tokens) != tokens or row.reward != reward:
            account.violations.append(f"{id_} was acknowledged and is not there")
    for row in rows.values():
        kept = stored.get(seed_of(row.rollout_uid))
        if kept is None or list(kept.rewards.values()) != [row.reward]:
            account.violations.append(f"{row.id} has no rollout of its own")
    account.acknowledged += len(team.acknowledged)


def _growths(engine: Engine, team: Team, allowed_over: int, account: Account) -> None:
    paid = select(rollout.c.growth_id, func.count()).group_by(rollout.c.growth_id)
    with read(engine) as connection:
        stored = dict(connection.execute(paid).tuples().all())
        rows = connection.execute(select(growth)).all()
    for row in rows:
        count = stored.pop(row.id, 0)
        account.uncharged += count - row.rollouts_sampled
        if row.rollouts_sampled > count:
            account.violations.append(f"{row.id} was charged for what is not there")
        told = team.progress.get(row.id, 0)
        account.acknowledged += told
        if row.rollouts_sampled < told:
            account.violations.append(f"{row.id}: {told} acknowledged, {row.rollouts_sampled} kept")
        over = count - team.budgets.get(row.id, count)
        if over > allowed_over:
            account.violations.append(f"{row.id} exceeds its budget by {over}")
    stored.pop(None, None)
    if stored:
        account.violations.append(f"rollouts of growths that are not there: {sorted(stored)}")
