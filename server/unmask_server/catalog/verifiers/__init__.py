"""From a text to a reward in [0, 1]."""

from unmask_server.catalog.verifiers.grading import (
    BUILT_IN,
    VERSIONS,
    Grader,
    canonical_options,
    check_options,
    check_reference,
)

__all__ = [
    "BUILT_IN",
    "VERSIONS",
    "Grader",
    "canonical_options",
    "check_options",
    "check_reference",
]
