"""From a text to a reward in [0, 1]."""

from unmask_server.catalog.verifiers.grading import (
    BUILT_IN,
    Grader,
    canonical_options,
    check_options,
    check_reference,
    reference_of,
    reference_problem,
    version_of,
)

__all__ = [
    "BUILT_IN",
    "Grader",
    "canonical_options",
    "check_options",
    "check_reference",
    "reference_of",
    "reference_problem",
    "version_of",
]
