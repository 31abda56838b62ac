"""Families of losses: one file each, with its formulas and where they come from.

A new loss is a file that satisfies `Family`, a member of `Loss` (and of the contract's enum, by the
same name), a line in `FAMILIES`, and a test against automatic differentiation.
"""

from __future__ import annotations

from unmask_server.diagnosis.algorithms import Loss
from unmask_server.diagnosis.families.base import Family, LossInputs, take
from unmask_server.diagnosis.families.gkd import GKD, restricted
from unmask_server.diagnosis.families.minillm import MiniLLM
from unmask_server.diagnosis.families.policy_gradient import PolicyGradient

__all__ = ["FAMILIES", "Family", "LossInputs", "restricted", "take"]

FAMILIES: dict[Loss, Family] = {
    Loss.FORWARD_KL: GKD(),
    Loss.REVERSE_KL: GKD(),
    Loss.JSD: GKD(),
    Loss.GRPO: PolicyGradient(),
    Loss.DR_GRPO: PolicyGradient(),
    Loss.MINILLM: MiniLLM(),
}
"""Which family computes a loss."""
