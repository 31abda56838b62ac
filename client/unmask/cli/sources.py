"""Where commands get questions from."""

from __future__ import annotations

from collections.abc import Iterator

from unmask.client import Client
from unmask.question_files import parse_set, read_questions
from unmask.v1 import catalog_pb2 as pb

QUESTIONS = (
    "JSONL, JSON, Parquet, a directory or .tar of these, with question and answer; or a set, "
    "'reasoning-gym:NAME?size=50&seed=1'."
)
"""Help of the argument."""

_AT_ONCE = 2000
"""Questions a call."""


def registered(
    client: Client, source: str, *, verifier: str = "", task: str = "", most: int | None = None
) -> Iterator[tuple[str, pb.RegisteredQuestion]]:
    """Register questions; gives where each comes from and what became of it.

    Args:
        client: the server's.
        source: a path, or a set as `parse_set` reads it.
        verifier: see `register_questions`.
        task: likewise.
        most: only the first so many.

    Raises:
        OSError: the source cannot be read.
        ValueError: it holds no questions.

    """
    wanted = parse_set(source)
    if wanted is not None:
        # A set's own size may be part of what its entries are, so a cut is made afterwards.
        results = client.register_questions(wanted, verifier=verifier, task=task)
        for result in results[:most]:
            yield f"{source}[{result.index}]", result
        return
    lines = read_questions(source)
    for before, part in lines.parts(_AT_ONCE, most):
        for result in client.register_questions(part, verifier=verifier, task=task):
            place = before + result.index
            result.index = place
            yield lines.origins[place - 1], result


def question_error(result: pb.RegisteredQuestion) -> str:
    """What is wrong with a question that was refused, in a line."""
    error = result.error
    return f"{error.field}: {error.message}" if error.field else error.message
