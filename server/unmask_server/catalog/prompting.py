"""From a message to the prompt that a model gets."""

from __future__ import annotations

from unmask_server.catalog.errors import InvalidArgument
from unmask_server.catalog.templates import DEFAULT_RAW, check_template, render_chat, render_raw
from unmask_server.catalog.tokenizer import ModelTokenizer
from unmask_server.catalog.types import Prompting, PromptStyle, RenderedPrompt


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
            raise InvalidArgument(f"{field}.style", "CHAT, but the tokenizer has no chat template")
        if given.template:
            raise InvalidArgument(f"{field}.template", "only RAW has a template of its own")
    elif given.template is not None:
        check_template(given.template, f"{field}.template")
        if "content" not in given.template:
            raise InvalidArgument(f"{field}.template", "it does not use {{ content }}")
    return given


def render_prompt(prompting: Prompting, tokenizer: ModelTokenizer, content: str) -> RenderedPrompt:
    """The prompt as text and as ids, with at most one beginning-of-sequence token.

    Raises:
        InvalidArgument: a template fails.

    """
    warnings: list[str] = []
    bos = tokenizer.bos_id
    if prompting.style is PromptStyle.CHAT:
        special = {
            name: text
            for name in ("bos_token", "eos_token", "unk_token", "pad_token")
            if (text := tokenizer.special(name)) is not None
        }
        text = render_chat(tokenizer.chat_template or "", content, special)
        tokens = tokenizer.encode(text)
        if bos is not None and bos not in tokens and tokenizer.encode("", add_special_tokens=True):
            warnings.append("the chat template writes no BOS, but the tokenizer would")
    else:
        text = render_raw(prompting.template or DEFAULT_RAW, content)
        tokens = tokenizer.encode(text)
        if bos is None or tokens[:1] != (bos,):
            with_special = tokenizer.encode(text, add_special_tokens=True)
            # Only what comes before: an end token that a tokenizer would add ends the prompt.
            if bos is not None and with_special[:1] == (bos,):
                tokens = (bos, *tokens)
    if bos is not None and len(tokens) > 1 and tokens[0] == tokens[1] == bos:
        warnings.append("the prompt begins with two BOS tokens")
    return RenderedPrompt(text, tokens, tuple(warnings))
