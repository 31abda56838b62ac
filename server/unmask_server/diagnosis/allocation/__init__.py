"""What to sample next: pure mathematics over the nodes of a growth."""

from unmask_server.diagnosis.allocation.beliefs import Beliefs, believe
from unmask_server.diagnosis.allocation.checks import CHECKS, Check, check
from unmask_server.diagnosis.allocation.draws import Z90
from unmask_server.diagnosis.allocation.objectives import FLAT_NORM, Objective, Statistic
from unmask_server.diagnosis.allocation.predict import (
    LEAST_BATCH,
    Cost,
    Forecast,
    Range,
    batch_size,
    forecast,
)
from unmask_server.diagnosis.allocation.problem import Problem
from unmask_server.diagnosis.allocation.sensitivity import Sensitivity, sensitivity
from unmask_server.diagnosis.allocation.served import half_widths
from unmask_server.diagnosis.allocation.spend import Spending, spend

__all__ = [
    "CHECKS",
    "FLAT_NORM",
    "LEAST_BATCH",
    "Z90",
    "Beliefs",
    "Check",
    "Cost",
    "Forecast",
    "Objective",
    "Problem",
    "Range",
    "Sensitivity",
    "Spending",
    "Statistic",
    "batch_size",
    "believe",
    "check",
    "forecast",
    "half_widths",
    "sensitivity",
    "spend",
]
