"""What policies and teachers are given for a question."""

from __future__ import annotations

from collections.abc import Callable

from unmask_server.catalog.errors import FailedPrecondition
from unmask_server.catalog.models import Models
from unmask_server.catalog.prompting import render_prompt
from unmask_server.catalog.templates import BUILT_IN_CONTEXTS, OWN_CORRECT, render_context
from unmask_server.catalog.tokenizer import check_token_ids
from unmask_server.catalog.types import (
    Model,
    Policy,
    Prompting,
    Question,
    RenderedPrompt,
    Teacher,
)
from unmask_server.reasons import Reason
from unmask_server.remembered import Remembered, weight_of

_PLAIN = BUILT_IN_CONTEXTS["none"]
_REMEMBERED = 64 * 2**20
"""Bytes of prompts kept in memory."""

Rendering = tuple[Model, Prompting, str, str, str | None]
"""Model, prompting, template, id of the question, the student's own rollout: they make a prompt."""


class Prompts:
    """Rendered prompts. Callable from threads."""

    def __init__(self, models: Models, question: Callable[[str], Question]) -> None:
        self._models = models
        self._question = question
        self._known = Remembered[Rendering, RenderedPrompt](_REMEMBERED, _weight)

    def of_policy(self, policy: Policy, question: Question) -> RenderedPrompt:
        """What a policy is asked. Raises: as `Catalog.policy_prompt`."""
        prompt = self._rendered(policy.model, policy.prompting, _PLAIN, question.id, None)
        _check_window(prompt, policy.max_new_tokens, policy.model, policy.id, question.id)
        return prompt

    def of_teacher(
        self, teacher: Teacher, question: Question, room: int, own: str | None
    ) -> RenderedPrompt:
        """What a teacher is shown. Raises: as `Catalog.teacher_prompt`."""
        prompt = self._rendered(
            teacher.model, teacher.prompting, teacher.template, question.id, own
        )
        _check_window(prompt, room, teacher.model, teacher.id, question.id)
        return prompt

    def _rendered(self, *how: *Rendering) -> RenderedPrompt:
        found = self._known.get(how)
        return self._known.put(how, self._render(*how)) if found is None else found

    def _render(
        self,
        model: Model,
        prompting: Prompting,
        template: str,
        question_id: str,
        own: str | None,
    ) -> RenderedPrompt:
        question = self._question(question_id)
        tokenizer = self._models.tokenizer(model)
        tokens = question.prompt_tokens
        if tokens is not None and template == _PLAIN:
            check_token_ids("prompt_tokens", tokens, model.vocab_size, tokenizer)
            return RenderedPrompt(tokenizer.decode(tokens), tokens)
        fields = dict(question.fields)
        if own is not None:
            fields[OWN_CORRECT] = own
        content = render_context(template, fields, question_id=question_id)
        return render_prompt(prompting, tokenizer, content)


def _weight(prompt: RenderedPrompt) -> int:
    return 500 + len(prompt.text) + weight_of(prompt.tokens)


def _check_window(
    prompt: RenderedPrompt, room: int, model: Model, owner: str, question_id: str
) -> None:
    if not prompt.tokens:
        raise FailedPrecondition(
            Reason.PROMPT_EMPTY, f"the prompt of {owner} for {question_id} is empty"
        )
    needed = len(prompt.tokens) + room
    if needed > model.max_context:
        raise FailedPrecondition(
            Reason.PROMPT_TOO_LONG,
            f"the prompt of {owner} for {question_id} has {len(prompt.tokens)} tokens; with "
            f"{room} more that is {needed}, and the model takes {model.max_context}; nothing is "
            "ever cut off: shorten the question or its context, or lower max_new_tokens",
            prompt_tokens=len(prompt.tokens),
            new_tokens=room,
            max_context=model.max_context,
        )
