"""Generations under diagnosis, on SQLite and PostgreSQL."""

from __future__ import annotations

from dataclasses import replace

import pytest
from unmask_server.catalog import Catalog
from unmask_server.catalog.errors import NotFound
from unmask_server.catalog.types import Trajectory

from tests.catalog.conftest import policy, question


@pytest.fixture
def kept(catalog: Catalog, folder: str) -> list[Trajectory]:
    """Six trajectories: of two questions, every other one right."""
    student = policy(catalog, folder)
    questions = [question(catalog, question=text) for text in ("1 2", "2 1")]
    key = questions[0].verifier.key
    trajectories = [
        Trajectory(
            id=f"trj-{i}",
            policy_id=student.id,
            question_id=questions[i % 3 // 2].id,
            tokens=(6, 7, 2**31 - 1, 0),
            finish=0,
            seed=2**63 - 1,
            ordinal=i,
            rollout_uid=bytes(16),
            rewards={key: float(i % 2)},
            created_at=100.0 + i // 2,
        )
        for i in range(6)
    ]
    for trajectory in trajectories:
        assert catalog.trajectories.add(trajectory) == trajectory
    return trajectories


def test_one_that_is_there_stays_as_it_is(catalog: Catalog, kept: list[Trajectory]) -> None:
    assert catalog.trajectories.add(replace(kept[0], tokens=(1,))) == kept[0]
    assert catalog.trajectories.get("trj-0") == kept[0]
    assert catalog.trajectories.find(["trj-1", "nothing"]) == {"trj-1": kept[1]}
    with pytest.raises(NotFound, match="trajectory 'nothing'"):
        catalog.trajectories.get("nothing")


def test_a_submitted_one_has_no_rollout(catalog: Catalog, kept: list[Trajectory]) -> None:
    submitted = replace(
        kept[0], id="trj-s", finish=2, seed=None, ordinal=None, rollout_uid=None, rewards={}
    )
    assert catalog.trajectories.add(submitted) == submitted


def pages(catalog: Catalog, **filters: object) -> list[str]:
    wanted = {"policy_id": None, "question_id": None, "correct": None, **filters}
    found: list[Trajectory] = []
    while page := catalog.trajectories.page(
        size=2,
        after=(found[-1].created_at, found[-1].id) if found else None,
        **wanted,  # type: ignore[arg-type]
    ):
        found += page
    return [trajectory.id for trajectory in found]


def test_lists_are_filtered_and_come_in_pages(catalog: Catalog, kept: list[Trajectory]) -> None:
    everything = [trajectory.id for trajectory in kept]
    assert pages(catalog) == everything
    assert pages(catalog, policy_id=kept[0].policy_id) == everything
    assert pages(catalog, policy_id="pol-other") == []
    assert pages(catalog, question_id=kept[2].question_id) == ["trj-2", "trj-5"]
    assert pages(catalog, correct=True) == ["trj-1", "trj-3", "trj-5"]
    assert pages(catalog, correct=False, question_id=kept[2].question_id) == ["trj-2"]


def test_an_outcome_is_kept_once_for_each_verifier(
    catalog: Catalog, kept: list[Trajectory]
) -> None:
    other = catalog.get_verifier("exact").key
    catalog.trajectories.record_outcome("trj-1", other, 0.0)
    catalog.trajectories.record_outcome("trj-1", other, 1.0)
    assert catalog.trajectories.get("trj-1").rewards == {**kept[1].rewards, other: 0.0}
