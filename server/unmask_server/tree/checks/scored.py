"""What models said: of the tokens of rollouts, and of the next token."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
from sqlalchemy import Connection, bindparam, delete, select

from unmask_server.database.rows import AnyRow
from unmask_server.database.schema import distribution, rollout, rollout_score
from unmask_server.tree.checks.findings import Finding
from unmask_server.tree.checks.streams import stream
from unmask_server.tree.ids import first_id

_ROUNDING = 1e-3
"""By how much float32 probabilities of a whole vocabulary may add up to more than 1."""
_NUMBER_BYTES = 4
_KEY_BYTES = 16

_scores = select(rollout_score, rollout.c.depth, rollout.c.forced_depth).select_from(
    rollout_score.outerjoin(rollout, rollout.c.id == rollout_score.c.rollout_id)
)
_delete_score = delete(rollout_score).where(
    rollout_score.c.rollout_id == bindparam("of_rollout"),
    rollout_score.c.source == bindparam("of_source"),
)


def score_findings(connection: Connection, checked: Counter[str]) -> Iterator[Finding]:
    """Scores against their rollouts."""
    for row in stream(connection, _scores):
        checked["rollout_score"] += 1
        name = f"score of rollout {row.rollout_id} by {row.source.hex()}"
        if row.depth is None:
            yield Finding("score.orphan", None, name, "there is no rollout", "deleted")
        elif not _is_score(row):
            tree_id = row.rollout_id // first_id(1)
            problem = "it is not a log-probability for each sampled token"
            repair = "deleted; it is scored anew when it is asked for"
            yield Finding("score.form", tree_id, name, problem, repair)


def delete_scores(connection: Connection) -> int:
    """Delete what `score_findings` finds; returns how many rows."""
    gone = [
        {"of_rollout": row.rollout_id, "of_source": row.source}
        for row in stream(connection, _scores)
        if row.depth is None or not _is_score(row)
    ]
    if gone:
        connection.execute(_delete_score, gone)
    return len(gone)


def _is_score(row: AnyRow) -> bool:
    if len(row.logprobs) != _NUMBER_BYTES * (row.depth - row.forced_depth):
        return False
    values = np.frombuffer(row.logprobs, "<f4")
    return bool(np.isfinite(values).all() and (values <= 0.0).all())


def distribution_findings(connection: Connection, checked: Counter[str]) -> Iterator[Finding]:
    """Every distribution by itself."""
    for row in stream(connection, select(distribution)):
        checked["distribution"] += 1
        name = f"distribution {row.key.hex()}"
        if problem := _form_problem(row):
            yield Finding("distribution.form", None, name, problem)
        elif problem := _mass_problem(row):
            yield Finding("distribution.mass", None, name, problem)


def _form_problem(row: AnyRow) -> str:
    if len(row.key) != _KEY_BYTES:
        return f"its key has {len(row.key)} bytes"
    if len(row.ids) % _NUMBER_BYTES or len(row.ids) != len(row.logprobs):
        return f"{len(row.ids)} bytes of ids, {len(row.logprobs)} of log-probabilities"
    ids = np.frombuffer(row.ids, "<i4")
    if not 0 <= row.top_k <= len(ids):
        return f"{row.top_k} ids are said to be the likeliest of {len(ids)}"
    if (ids < 0).any() or len(np.unique(ids)) != len(ids):
        return "an id is negative or there twice"
    if not np.isfinite(np.frombuffer(row.logprobs, "<f4")).all():
        return "a log-probability is not finite"
    return ""


def _mass_problem(row: AnyRow) -> str:
    probabilities = np.exp(np.frombuffer(row.logprobs, "<f4").astype(np.float64))
    total = float(probabilities.sum())
    if total > 1.0 + _ROUNDING:
        return f"its probabilities add up to {total:.6g}"
    if row.complete and total < 1.0 - _ROUNDING:
        return f"it is of the whole vocabulary, but its probabilities add up to {total:.6g}"
    return ""
