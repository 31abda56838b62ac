"""Growths to test with."""

from __future__ import annotations

from dataclasses import replace

from unmask_server.growth.spec import Allocation, GrowthSpec, Target

LEASE = 30.0


def spec(**changes: object) -> GrowthSpec:
    """A spec of a question as a whole."""
    made = GrowthSpec(
        targets=(Target(policy_id="p1", question_id="q1", free=True),),
        allocation=Allocation.POLICY,
        verifier="",
        teacher_ids=(),
        top_k=20,
        rollouts_per_node=64,
        max_rollouts=1000,
        max_tokens=None,
    )
    return replace(made, **changes)  # type: ignore[arg-type]
