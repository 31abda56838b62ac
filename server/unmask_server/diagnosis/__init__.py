"""The mathematics: gradients, posteriors, alignments, sets of nodes. Pure numpy, no I/O."""

from unmask_server.diagnosis.algorithms import Algorithm, Form, Loss, Rest, TopKOf
from unmask_server.diagnosis.alignment import (
    MIN_COVERAGE,
    Alignment,
    Measured,
    Status,
    align,
    measure,
)
from unmask_server.diagnosis.continuation import Continuations
from unmask_server.diagnosis.controls import entropy, permuted, powered, tempered
from unmask_server.diagnosis.counts import Counts
from unmask_server.diagnosis.divergence import kl
from unmask_server.diagnosis.gradients import (
    UnboundedLossError,
    descent,
    flat_bound,
    ideal_gradient,
)
from unmask_server.diagnosis.ideal import IdealGradient, ideal
from unmask_server.diagnosis.intervals import Interval
from unmask_server.diagnosis.listed import with_spread_rest
from unmask_server.diagnosis.node import FLAT_TOLERANCE, NodePosterior
from unmask_server.diagnosis.posterior import (
    HierarchicalPosterior,
    JeffreysPosterior,
    SuccessPosterior,
)
from unmask_server.diagnosis.sets import (
    NodeTerms,
    SetDifference,
    SetSummary,
    SetTerms,
    summarize_set,
)
from unmask_server.diagnosis.support import (
    TAIL_ID,
    Support,
    candidate_ids,
    covered_mass,
    effective_support,
    with_tail,
)
from unmask_server.diagnosis.terms import Draws
from unmask_server.diagnosis.value import VALUE_DRAWS, Value

__all__ = [
    "FLAT_TOLERANCE",
    "MIN_COVERAGE",
    "TAIL_ID",
    "VALUE_DRAWS",
    "Algorithm",
    "Alignment",
    "Continuations",
    "Counts",
    "Draws",
    "Form",
    "HierarchicalPosterior",
    "IdealGradient",
    "Interval",
    "JeffreysPosterior",
    "Loss",
    "Measured",
    "NodePosterior",
    "NodeTerms",
    "Rest",
    "SetDifference",
    "SetSummary",
    "SetTerms",
    "Status",
    "SuccessPosterior",
    "Support",
    "TopKOf",
    "UnboundedLossError",
    "Value",
    "align",
    "candidate_ids",
    "covered_mass",
    "descent",
    "effective_support",
    "entropy",
    "flat_bound",
    "ideal",
    "ideal_gradient",
    "kl",
    "measure",
    "permuted",
    "powered",
    "summarize_set",
    "tempered",
    "with_spread_rest",
    "with_tail",
]
