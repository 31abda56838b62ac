"""What to sample next: pure mathematics over the nodes of a growth."""

from unmask_server.diagnosis.allocation.beliefs import Beliefs, believe
from unmask_server.diagnosis.allocation.objectives import FLAT_NORM, Objective, Statistic
from unmask_server.diagnosis.allocation.problem import Problem
from unmask_server.diagnosis.allocation.sensitivity import Sensitivity, sensitivity
from unmask_server.diagnosis.allocation.spend import Spending, spend

__all__ = [
    "FLAT_NORM",
    "Beliefs",
    "Objective",
    "Problem",
    "Sensitivity",
    "Spending",
    "Statistic",
    "believe",
    "sensitivity",
    "spend",
]
