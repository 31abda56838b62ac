"""A growth's spec is stored as JSON and comes back the same."""

from __future__ import annotations

import json

import pytest
from unmask_server.diagnosis import Algorithm, Form, Loss
from unmask_server.diagnosis.allocation import Objective, Statistic
from unmask_server.growth.spec import Allocation, GrowthSpec, Target


@pytest.mark.parametrize("objective", [None, Objective(Statistic.RANKING, 0.1, confidence=0.9)])
def test_a_spec_survives_json(objective: Objective | None) -> None:
    spec = GrowthSpec(
        targets=(Target(trajectory_id="t"), Target(policy_id="p", question_id="q", prefix=(1, 2))),
        allocation=Allocation.ADAPTIVE,
        verifier="",
        teacher_ids=("a", "b"),
        top_k=20,
        rollouts_per_node=0,
        max_rollouts=10,
        max_tokens=None,
        algorithms=(Algorithm(Loss.JSD, beta=0.3), Algorithm(Loss.REVERSE_KL, Form.SAMPLED)),
        objective=objective,
    )
    assert GrowthSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_a_spec_from_before_adaptive_growth_is_understood() -> None:
    old = {
        "targets": [],
        "allocation": "policy",
        "verifier": "",
        "teacher_ids": [],
        "top_k": 20,
        "rollouts_per_node": 64,
        "max_rollouts": 10,
        "max_tokens": None,
    }
    spec = GrowthSpec.from_json(old)
    assert spec.algorithms == ()
    assert spec.objective is None
