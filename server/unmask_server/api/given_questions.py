"""What RegisterQuestions was given, as questions to register."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from unmask.v1 import catalog_pb2 as pb

from unmask_server.catalog import QuestionSpec, parse_jsonl
from unmask_server.catalog.errors import InvalidArgument
from unmask_server.catalog.verifiers.gym import ReasoningGym

MAX_QUESTIONS = 10_000

Given = list[tuple[int, QuestionSpec | str]]
"""(place, question or what is wrong with it)."""


def given_questions(request: pb.RegisterQuestionsRequest, gym: ReasoningGym) -> Given:
    """The questions of a request.

    Raises:
        InvalidArgument: too many lines, or no such set.
        FailedPrecondition: a set of a library that is not installed.

    """
    given: Given
    if request.jsonl:
        given = parse_jsonl(request.jsonl)
        if len(given) > MAX_QUESTIONS:
            raise InvalidArgument("jsonl", f"{len(given)} are more than {MAX_QUESTIONS} questions")
    elif request.questions:
        given = [
            (i, QuestionSpec(q.name or None, dict(q.fields), tuple(q.prompt_tokens) or None))
            for i, q in enumerate(request.questions)
        ]
    else:
        given = list(enumerate(_made(request.reasoning_gym, gym)))
    if not request.task:
        return given
    return [
        (i, spec if isinstance(spec, str) else _tagged(spec, request.task)) for i, spec in given
    ]


def _made(wanted: pb.ReasoningGymSet, gym: ReasoningGym) -> list[QuestionSpec]:
    return gym.questions(
        wanted.dataset,
        size=wanted.size,
        seed=wanted.seed,
        config=_config(wanted.config),
        prompt=wanted.prompt or "default",
    )


def _config(text: str) -> dict[str, Any]:
    try:
        config = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise InvalidArgument("reasoning_gym.config", f"no JSON: {error}") from None
    if not isinstance(config, dict):
        raise InvalidArgument("reasoning_gym.config", "no JSON object")
    return config


def _tagged(spec: QuestionSpec | str, task: str) -> QuestionSpec | str:
    if isinstance(spec, str):
        return spec
    return replace(spec, fields={"task": task, **spec.fields})
