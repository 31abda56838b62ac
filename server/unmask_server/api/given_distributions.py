"""What PutTeacherDistributions was given, as distributions to put."""

from __future__ import annotations

import json
from collections.abc import Callable

from unmask.v1 import catalog_pb2 as pb

from unmask_server.api.texts import refuse_nul
from unmask_server.catalog import Catalog
from unmask_server.catalog.errors import FailedPrecondition, InvalidArgument
from unmask_server.catalog.types import Question, Teacher
from unmask_server.nodes.stored import Listed
from unmask_server.reasons import Reason

MAX_DISTRIBUTIONS = 10_000
_FIELDS = frozenset(pb.TeacherDistribution.DESCRIPTOR.fields_by_name)


def given_distributions(
    request: pb.PutTeacherDistributionsRequest, teacher: Teacher, catalog: Catalog
) -> list[Listed]:
    """The distributions of a request; what they are is not looked at yet.

    Raises:
        InvalidArgument: too many lines, a line that is none, a position
            that the trajectory does not have.
        NotFound: a question or a trajectory.
        FailedPrecondition: a trajectory's tokens are not the teacher's.

    """
    if request.jsonl:
        given = _lines(request.jsonl, request.first_line or 1)
    else:
        given = [(f"distributions[{i}].", one) for i, one in enumerate(request.distributions)]
    if len(given) > MAX_DISTRIBUTIONS:
        raise InvalidArgument("jsonl", f"more than {MAX_DISTRIBUTIONS} in one call")
    locate = _locator(teacher, catalog)
    found = []
    for field, one in given:
        question, prefix = locate(one, field)
        found.append(Listed(field, question, prefix, one.ids, one.logprobs))
    return found


def _locator(
    teacher: Teacher, catalog: Catalog
) -> Callable[[pb.TeacherDistribution, str], tuple[Question, tuple[int, ...]]]:
    """Finds the nodes that are meant; each trajectory is read once."""
    seen: dict[str, tuple[Question, tuple[int, ...]]] = {}

    def trajectory(name: str, field: str) -> tuple[Question, tuple[int, ...]]:
        found = catalog.trajectories.get(name)
        policy = catalog.get_policy(found.policy_id)
        if differences := catalog.tokenizer_differences(policy.model, teacher.model):
            raise FailedPrecondition(
                Reason.TOKENIZER_MISMATCH,
                f"policy {policy.id} has another tokenizer than teacher "
                f"{teacher.id}: {'; '.join(differences)}",
                field=f"{field}trajectory",
                policy=policy.id,
                teacher=teacher.id,
            )
        return catalog.get_question(found.question_id), found.tokens

    def locate(one: pb.TeacherDistribution, field: str) -> tuple[Question, tuple[int, ...]]:
        if not one.trajectory:
            if not one.question:
                raise InvalidArgument(f"{field}question", "give a question or a trajectory")
            if one.position:
                raise InvalidArgument(f"{field}position", "only with a trajectory")
            return catalog.get_question(one.question), tuple(one.prefix)
        if one.question or one.prefix:
            raise InvalidArgument(f"{field}trajectory", "says the question and the prefix already")
        if one.trajectory not in seen:
            seen[one.trajectory] = trajectory(one.trajectory, field)
        question, tokens = seen[one.trajectory]
        if not 0 <= one.position < len(tokens):
            raise InvalidArgument(
                f"{field}position", f"{one.position} is not in 0 to {len(tokens) - 1}"
            )
        return question, tokens[: one.position]

    return locate


def _lines(data: bytes, first: int) -> list[tuple[str, pb.TeacherDistribution]]:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidArgument("jsonl", f"is no UTF-8: {error.reason}") from None
    # Not splitlines: JSON's strings may hold the other line separators of Unicode.
    rows = [(first + i, line) for i, line in enumerate(text.split("\n")) if line.strip()]
    if not rows:
        raise InvalidArgument("jsonl", "has no line")
    return [(f"jsonl[line {number}].", _line(number, line)) for number, line in rows]


def _line(number: int, line: str) -> pb.TeacherDistribution:
    field = f"jsonl[line {number}]"
    try:
        given = json.loads(line)
    except (ValueError, RecursionError):
        raise InvalidArgument(field, "is no JSON") from None
    if not isinstance(given, dict):
        raise InvalidArgument(field, "is no object")
    if unknown := given.keys() - _FIELDS:
        raise InvalidArgument(
            f"{field}.{min(unknown)}", f"there is no such field; give {', '.join(sorted(_FIELDS))}"
        )
    made = pb.TeacherDistribution()
    for name, value in given.items():
        try:
            made.MergeFrom(pb.TeacherDistribution(**{name: value}))
        except (TypeError, ValueError):
            raise InvalidArgument(f"{field}.{name}", "is not of its kind") from None
    try:
        refuse_nul(made)
    except InvalidArgument as error:
        raise InvalidArgument(f"{field}.{error.field}", error.description) from None
    return made
