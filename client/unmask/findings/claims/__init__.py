"""Claims, in the paper's order. A new one is a file with a function `examine` and a line here."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from unmask.findings.claims import (
    configurations,
    context_free,
    divergence,
    kept_tokens,
    minillm,
    neighbours,
    outcomes,
    stronger,
)
from unmask.findings.collect import Cell
from unmask.findings.finding import Finding

CLAIMS: tuple[Callable[[Sequence[Cell]], Finding], ...] = (
    outcomes.examine,
    context_free.examine,
    stronger.examine,
    configurations.examine,
    neighbours.examine,
    minillm.examine,
    divergence.examine,
    kept_tokens.examine,
)
