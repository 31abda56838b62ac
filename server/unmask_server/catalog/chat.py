"""Chat templates of checkpoints, rendered as transformers renders them.

Each checkpoint's template must mean here what it means there, so the environment is that of
`transformers.utils.chat_template_utils`: its settings, filters, globals and its `generation` block.
It is limited (`sandbox`), since models come from anywhere. One thing differs: the date. A policy's
prompt for a question must be the same for ever, or rollouts of different prompts would be counted
as one; so a template that asks for the date always gets `DATE`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

from jinja2 import Environment, Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Macro

from unmask_server.catalog.errors import InvalidArgument
from unmask_server.catalog.sandbox import LimitedEnvironment, render
from unmask_server.catalog.templates import RENDER_ERRORS

DATE = datetime(2024, 7, 26)
"""Today, for templates: the day that Llama 3's templates take when they are told none."""


def render_chat(template: str, content: str, special: Mapping[str, str]) -> str:
    """The prompt that a chat template makes of one user message.

    Args:
        template: Jinja over `messages`, `add_generation_prompt` and the special tokens.
        content: of the message.
        special: texts of the special tokens: `bos_token`, `eos_token`, …

    Raises:
        InvalidArgument: it is no template, or it refuses the message.

    """
    values = {
        "messages": [{"role": "user", "content": content}],
        "tools": None,
        "documents": None,
        "add_generation_prompt": True,
        **special,
    }
    try:
        return render(_compiled(template), values)
    except RENDER_ERRORS as error:
        raise InvalidArgument("chat_template", f"cannot be rendered: {error}") from None


def asks_for_date(template: str) -> bool:
    """Whether a template's text may depend on the day."""
    return "strftime_now" in template


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}` marks the assistant's part; here it is just text."""

    tags = {"generation"}  # noqa: RUF012 - declared so by jinja2

    def parse(self, parser: Parser) -> nodes.Node:
        """The block as a call that gives its body."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Macro) -> str:
        return caller()


@lru_cache(maxsize=64)
def _compiled(template: str) -> Template:
    return _environment().from_string(template)


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = LimitedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = DATE.strftime
    environment.limit_filters()
    return environment


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own escapes HTML.
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
