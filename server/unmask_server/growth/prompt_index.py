"""From a trainer's prompt to the question whose prompt it is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from unmask_server.catalog import Catalog
from unmask_server.catalog.errors import FailedPrecondition, InvalidArgument
from unmask_server.catalog.types import Policy, Question
from unmask_server.reasons import Reason


class PromptIndex:
    """The prompts that a policy is given, by tokens and by text."""

    def __init__(self, catalog: Catalog, policy: Policy, questions: Iterable[Question]) -> None:
        self._catalog = catalog
        self._policy = policy
        self._by_tokens: defaultdict[tuple[int, ...], list[Question]] = defaultdict(list)
        self._by_text: defaultdict[str, list[Question]] = defaultdict(list)
        tokenizer = catalog.tokenizer(policy.model)
        for question in questions:
            try:
                prompt = catalog.policy_prompt(policy, question)
            except (InvalidArgument, FailedPrecondition):
                # It cannot be asked, so no trainer has asked it.
                continue
            self._by_tokens[prompt.tokens].append(question)
            texts = {prompt.text, tokenizer.plain(prompt.tokens), _own(question)}
            for text in {text.strip() for text in texts} - {""}:
                self._by_text[text].append(question)

    def find(self, tokens: Sequence[int], text: str, field: str) -> Question:
        """The question of a prompt, by its tokens if there are any.

        Raises:
            FailedPrecondition: it is no question's, or several questions'.

        """
        found = self._by_tokens.get(tuple(tokens)) if tokens else self._by_text.get(text.strip())
        if not found:
            shown = (
                self._catalog.tokenizer(self._policy.model).decode(tokens[:200]) if tokens else text
            )
            raise FailedPrecondition(
                Reason.PROMPT_UNKNOWN,
                f"the prompt {shown[:200]!r} is that of no question for policy "
                f"{self._policy.id}: register the questions, or compare with PreviewPrompt",
                field=field,
                policy=self._policy.id,
            )
        if len(found) > 1:
            raise FailedPrecondition(
                Reason.PROMPT_AMBIGUOUS,
                f"the prompt is that of {len(found)} questions, {found[0].id} and "
                f"{found[1].id} among them: name the ones that are meant in `questions`",
                field=field,
            )
        return found[0]

    def check(self, question: Question, tokens: Sequence[int], text: str, field: str) -> None:
        """Refuse a prompt that is not the one which the policy is given for a question.

        Raises:
            FailedPrecondition: so it is; it says where they part.

        """
        prompt = self._catalog.policy_prompt(self._policy, question)
        if tokens and tuple(tokens) != prompt.tokens:
            place = next(
                (i for i, (a, b) in enumerate(zip(tokens, prompt.tokens, strict=False)) if a != b),
                min(len(tokens), len(prompt.tokens)),
            )
            raise FailedPrecondition(
                Reason.GENERATIONS_DIFFER,
                f"the prompt is not the one of policy {self._policy.id} for question "
                f"{question.id}: {len(tokens)} tokens instead of {len(prompt.tokens)}, and they "
                f"part at token {place}",
                field=field,
                policy=self._policy.id,
            )
        if text and not tokens and question not in self._by_text.get(text.strip(), ()):
            raise FailedPrecondition(
                Reason.GENERATIONS_DIFFER,
                f"the prompt {text[:200]!r} is not the one of policy {self._policy.id} "
                f"for question {question.id}",
                field=field,
                policy=self._policy.id,
            )


def _own(question: Question) -> str:
    return str(question.fields.get("question", ""))
