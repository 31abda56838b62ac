"""Jinja templates from users and checkpoints, rendered in a sandbox."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

from jinja2 import StrictUndefined, Template, TemplateError, TemplateSyntaxError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from unmask_server.catalog.errors import InvalidArgument

BUILT_IN_CONTEXTS = {
    "none": "{{ question }}",
    "answer": "{{ question }}\nThe correct answer is {{ answer }}.",
    "hint": "{{ question }}\nHint: {{ hint }}",
    "solution": "{{ question }}\nA correct solution: {{ solution }}",
    "wrong_solution": "{{ question }}\nA wrong attempt: {{ wrong_solution }}",
    "contrastive": (
        "{{ question }}\nA correct solution: {{ solution }}\nA wrong attempt: {{ wrong_solution }}"
    ),
}
"""By name: what a teacher is shown, as a template over the question's fields."""

DEFAULT_RAW = "{{ content }}"


def context_template(name: str, template: str | None, field: str) -> str:
    """The template of a context: the one given, or the built-in one of that name.

    Raises:
        InvalidArgument: there is neither, or it is no template.

    """
    if template is None:
        if name not in BUILT_IN_CONTEXTS:
            known = ", ".join(BUILT_IN_CONTEXTS)
            raise InvalidArgument(
                f"{field}.name", f"{name!r} is no built-in context ({known}); give its template"
            )
        return BUILT_IN_CONTEXTS[name]
    check_template(template, f"{field}.template")
    return template


def check_template(template: str, field: str) -> None:
    """Refuse what is no template."""
    try:
        _strict().from_string(template)
    except TemplateSyntaxError as error:
        raise InvalidArgument(field, f"line {error.lineno}: {error.message}") from None


def render_context(template: str, fields: Mapping[str, Any], *, question_id: str) -> str:
    """The content of the message that a teacher gets.

    Raises:
        InvalidArgument: the question lacks a field that the context needs.

    """
    needed = meta.find_undeclared_variables(_strict().parse(template))
    missing = sorted(name for name in needed if fields.get(name) in (None, ""))
    if missing:
        raise InvalidArgument(
            "context", f"question {question_id} has no field {missing[0]!r}, which it needs"
        )
    values = {name: as_text(value) for name, value in fields.items()}
    return _render(_compiled(template, strict=True), values, "context")


def render_raw(template: str, content: str) -> str:
    """The prompt around a message."""
    return _render(_compiled(template, strict=True), {"content": content}, "prompting.template")


def render_chat(template: str, content: str, special: Mapping[str, str]) -> str:
    """The prompt that a chat template makes of one user message."""
    values = {
        "messages": [{"role": "user", "content": content}],
        "add_generation_prompt": True,
        **special,
    }
    return _render(_compiled(template, strict=False), values, "chat_template")


def as_text(value: Any) -> str:
    """A field as text: a list of messages is their contents, never a Python repr."""
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence):
        parts = [v.get("content") if isinstance(v, Mapping) else v for v in value]
        return "\n".join(as_text(part) for part in parts if part is not None)
    if isinstance(value, Mapping):
        return as_text(value.get("content", json.dumps(value, ensure_ascii=False)))
    return json.dumps(value)


def _render(template: Template, values: Mapping[str, Any], field: str) -> str:
    try:
        return template.render(values)
    except (TemplateError, TypeError, ValueError, ArithmeticError) as error:
        raise InvalidArgument(field, f"cannot be rendered: {error}") from None


@lru_cache(maxsize=256)
def _compiled(template: str, *, strict: bool) -> Template:
    return (_strict() if strict else _chat()).from_string(template)


@lru_cache(maxsize=1)
def _strict() -> ImmutableSandboxedEnvironment:
    return ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)


@lru_cache(maxsize=1)
def _chat() -> ImmutableSandboxedEnvironment:
    # As transformers sets it up, so that every checkpoint's template means what it means there.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )

    def raise_exception(message: str) -> NoReturn:
        raise TemplateError(message)

    def tojson(value: Any, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment
