"""The audit notices what it is there to notice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from sqlalchemy import text
from unmask_server.database.connect import open_database, write

from tests.chaos.audit import audit
from tests.chaos.conftest import MakeTeam
from tests.chaos.team import Team

pytestmark = pytest.mark.chaos

BUDGET = 60


@pytest.fixture
async def team(make_team: MakeTeam) -> Team:
    """After a growth and two trajectories, with its server gone."""
    team = make_team("sqlite")
    async with team.running() as server:
        await team.fill(server)
        await team.sample(server)
        await team.finish(server, "whole", BUDGET)
    return team


TAMPERING = {
    "DELETE FROM outcome WHERE rollout_id = (SELECT max(rollout_id) FROM outcome)": "missing",
    "UPDATE outcome SET reward = 0.5 WHERE rollout_id = (SELECT max(id) FROM rollout)": "graded",
    "UPDATE node_stat SET n = n + 1 WHERE node_id = (SELECT max(node_id) FROM node_stat)": "counts",
    "UPDATE rollout SET uid = randomblob(16) WHERE id = (SELECT max(id) FROM rollout)": "answered",
    "DELETE FROM trajectory_outcome": "acknowledged and is not there",
    "UPDATE growth SET rollouts_sampled = rollouts_sampled + 1": "charged for what is not there",
    "UPDATE growth SET rollouts_sampled = 1": "60 acknowledged, 1 kept",
}


async def test_it_finds_what_was_tampered_with(team: Team, tmp_path: Path) -> None:
    clean = audit(team)
    assert clean.violations == []
    assert (clean.answered, clean.committed, clean.acknowledged) == (BUDGET + 2,) * 3
    whole = team.url.removeprefix("sqlite:///")
    for number, (statement, told) in enumerate(TAMPERING.items()):
        path = tmp_path / f"tampered{number}.db"
        shutil.copy(whole, path)
        team.url = f"sqlite:///{path}"
        engine = open_database(team.url)
        with write(engine) as connection:
            connection.execute(text(statement))
        engine.dispose()
        assert any(told in what for what in audit(team).violations), statement
    team.url = f"sqlite:///{whole}"


async def test_it_finds_what_was_answered_and_is_not_there(team: Team) -> None:
    first, *rest = team.answered.read_text().splitlines()
    more = json.loads(first) | {"seed": 1}
    team.answered.write_text("\n".join([first, *rest, json.dumps(more)]))
    assert audit(team, allowed_lost=1).violations == []
    assert audit(team).violations == ["1 lost, 0 may be"]
    team.answered.write_text("\n".join(rest))
    assert any("was never answered" in what for what in audit(team).violations)
