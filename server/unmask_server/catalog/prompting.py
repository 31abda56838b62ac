"""From a message to the prompt that a model gets."""

from __future__ import annotations

from unmask_server.catalog.chat import DATE, asks_for_date, render_chat
from unmask_server.catalog.errors import InvalidArgument
from unmask_server.catalog.templates import DEFAULT_RAW, check_template, render_raw
from unmask_server.catalog.tokenizer import ModelTokenizer
from unmask_server.catalog.types import Prompting, PromptStyle, RenderedPrompt

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")
"""What a chat template may write by name."""


def choose_prompting(given: Prompting | None, tokenizer: ModelTokenizer, field: str) -> Prompting:
    """The prompting to use: the one given, checked; else CHAT if there is a chat template.

    Raises:
        InvalidArgument: CHAT without a chat template, or a template that is none.

    """
    if given is None:
        chat = tokenizer.chat_template is not None
        return Prompting(PromptStyle.CHAT if chat else PromptStyle.RAW)
    if given.style is PromptStyle.CHAT:
        if tokenizer.chat_template is None:
            raise InvalidArgument(
                f"{field}.style", "is CHAT, but the tokenizer has no chat template; use RAW"
            )
        if given.template:
            raise InvalidArgument(f"{field}.template", "only RAW has a template of its own")
    elif given.template is not None:
        names = check_template(given.template, f"{field}.template")
        if names != {"content"}:
            used = ", ".join(sorted(names)) or "nothing"
            raise InvalidArgument(f"{field}.template", f"uses {used}; it is over {{{{ content }}}}")
    return given


def render_prompt(prompting: Prompting, tokenizer: ModelTokenizer, content: str) -> RenderedPrompt:
    """The prompt as text and as ids, with at most one beginning-of-sequence token.

    A chat template writes its own; before a raw prompt stands what the tokenizer puts before every
    text, unless the template has written it.

    Raises:
        InvalidArgument: a template fails.

    """
    if prompting.style is PromptStyle.RAW:
        text = render_raw(prompting.template or DEFAULT_RAW, content)
        tokens = tokenizer.encode(text)
        opening = tokenizer.opening
        if tokens[: len(opening)] != opening:
            tokens = opening + tokens
        return RenderedPrompt(text, tokens, _doubled(tokens, tokenizer))
    template = tokenizer.chat_template or ""
    special = {name: token for name in SPECIAL_TOKENS if (token := tokenizer.special(name))}
    text = render_chat(template, content, special)
    tokens = tokenizer.encode(text)
    warnings: list[str] = []
    bos = tokenizer.bos_id
    if bos is not None and bos in tokenizer.opening and bos not in tokens:
        warnings.append(
            "the chat template writes no beginning-of-sequence token, but the tokenizer puts one "
            "before every text: compare with how the model was trained"
        )
    if asks_for_date(template):
        warnings.append(
            f"the chat template asks for the date: it is always {DATE:%d %b %Y} here, so that the "
            "prompt of a question stays the same"
        )
    return RenderedPrompt(text, tokens, (*warnings, *_doubled(tokens, tokenizer)))


def _doubled(tokens: tuple[int, ...], tokenizer: ModelTokenizer) -> tuple[str, ...]:
    bos = tokenizer.bos_id
    if bos is not None and tokens[:2] == (bos, bos):
        return ("the prompt begins with two beginning-of-sequence tokens",)
    return ()
