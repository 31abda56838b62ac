"""Jinja templates of users: contexts and raw prompts, rendered in a sandbox."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError, TemplateSyntaxError, meta, nodes
from jinja2.exceptions import UndefinedError

from unmask_server.catalog.errors import InvalidArgument
from unmask_server.catalog.sandbox import LimitedEnvironment, render

OWN_CORRECT = "own_correct"
"""The name under which templates see the student's own correct rollout."""

BUILT_IN_CONTEXTS = {
    "none": "{{ question }}",
    "answer": "{{ question }}\nThe correct answer is {{ answer }}.",
    "hint": "{{ question }}\nHint: {{ hint }}",
    "solution": "{{ question }}\nA correct solution: {{ solution }}",
    "summary": "{{ question }}\nA correct solution: {{ summary }}",
    "demonstration": (
        "{{ question }}\n\nThis is an example of a response to the question:\n"
        "{{ demonstration | default(solution) }}\n\n"
        "Now answer with a response of your own, including the thinking process."
    ),
    "own_correct": "{{ question }}\nA correct solution: {{ own_correct }}",
    "wrong_solution": "{{ question }}\nA wrong attempt: {{ wrong_solution }}",
    "misleading": "{{ question }}\nA correct solution: {{ wrong_solution }}",
    "contrastive": (
        "{{ question }}\nA correct solution: {{ solution }}\nA wrong attempt: {{ wrong_solution }}"
    ),
}
"""By name: what a teacher is shown, as a template over the question's fields."""

DEFAULT_RAW = "{{ content }}"

MAX_TEMPLATE = 20_000
"""Characters of a template."""

RENDER_ERRORS = (
    TemplateError,
    TypeError,
    ValueError,
    ArithmeticError,
    LookupError,
    AttributeError,
    RecursionError,
    # Python's own limits on what a template is compiled to: nested too deeply.
    SyntaxError,
    MemoryError,
)
"""What a template that compiles can raise when it is rendered."""


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


def check_template(template: str, field: str) -> frozenset[str]:
    """Refuse what is no template. Returns the names that it uses.

    Raises:
        InvalidArgument: it is too long, or not Jinja; says on which line.

    """
    if len(template) > MAX_TEMPLATE:
        raise InvalidArgument(field, f"is longer than {MAX_TEMPLATE} characters")
    try:
        parsed = _environment().parse(template)
        names = meta.find_undeclared_variables(parsed)
        _check_small(parsed, field)
        _compiled(template)
    except TemplateSyntaxError as error:
        raise InvalidArgument(field, f"line {error.lineno}: {error.message}") from None
    except RENDER_ERRORS as error:
        raise InvalidArgument(field, f"is no template: {error}") from None
    return frozenset(names)


@lru_cache(maxsize=256)
def uses_own_correct(template: str) -> bool:
    """Whether a context shows the student's own correct rollout."""
    return OWN_CORRECT in meta.find_undeclared_variables(_environment().parse(template))


def render_context(template: str, fields: Mapping[str, Any], *, question_id: str) -> str:
    """The content of the message that a teacher gets.

    A field that is empty counts as absent; `{% if hint is defined %}` asks whether it is there.

    Raises:
        InvalidArgument: the question lacks a field that the context needs, or the template fails.

    """
    texts = {name: as_text(value) for name, value in fields.items() if value is not None}
    values = {name: text for name, text in texts.items() if text.strip()}
    try:
        return render(_compiled(template), values)
    except UndefinedError as error:
        needed = meta.find_undeclared_variables(_environment().parse(template))
        missing = sorted(name for name in needed - values.keys() if f"'{name}'" in str(error))
        if missing:
            raise InvalidArgument(
                "context",
                f"question {question_id} has no field {missing[0]!r}, which it needs; "
                "register the question with it, or use another context",
            ) from None
        raise InvalidArgument("context", f"cannot be rendered: {error}") from None
    except RENDER_ERRORS as error:
        raise InvalidArgument("context", f"cannot be rendered: {error}") from None


def render_raw(template: str, content: str) -> str:
    """The prompt around a message.

    Raises:
        InvalidArgument: the template fails.

    """
    try:
        return render(_compiled(template), {"content": content})
    except RENDER_ERRORS as error:
        raise InvalidArgument("prompting.template", f"cannot be rendered: {error}") from None


def as_text(value: Any) -> str:
    """A field as text: a list of messages is their contents, never a Python or JSON repr."""
    if isinstance(value, str):
        return _message_contents(value)
    if isinstance(value, Sequence):
        return "\n".join(text for part in value if (text := as_text(part)))
    if isinstance(value, Mapping):
        for key in ("content", "text"):
            if key in value:
                return "" if value[key] is None else as_text(value[key])
        return json.dumps(value, ensure_ascii=False)
    return json.dumps(value)


def _message_contents(text: str) -> str:
    """The contents of messages that were sent as JSON text; any other text as it is."""
    if not text.lstrip().startswith("[") or '"content"' not in text:
        return text
    try:
        messages = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if all(isinstance(m, Mapping) and "role" in m and "content" in m for m in messages):
        return as_text(messages)
    return text


@lru_cache(maxsize=256)
def _compiled(template: str) -> Template:
    return _environment().from_string(template)


FILTERS = frozenset(
    ("capitalize", "default", "first", "join", "last", "length", "lower", "title", "trim", "upper")
)
"""The filters that user templates may use: none makes a text longer than what it is given."""


def _check_small(parsed: nodes.Template, field: str) -> None:
    """Refuse what could make a short template run long or write much.

    User templates put texts together: with conditions, with a loop that has no other inside, and
    with a few filters. They call nothing and compute nothing.
    """
    for node in parsed.find_all(nodes.Filter):
        if node.name not in FILTERS:
            known = ", ".join(sorted(FILTERS))
            raise InvalidArgument(field, f"the filter {node.name} is not for templates ({known})")
    refused = (
        (nodes.Call, "calls"),
        (nodes.CallBlock, "calls"),
        (nodes.Macro, "macros"),
        (nodes.Mul, "the operator *"),
        (nodes.Pow, "the operator **"),
        (nodes.Mod, "the operator %"),
        (nodes.Include, "include"),
        (nodes.Import, "import"),
        (nodes.FromImport, "import"),
        (nodes.Extends, "extends"),
    )
    for kind, what in refused:
        if (found := parsed.find(kind)) is not None:
            raise InvalidArgument(field, f"line {found.lineno}: not for templates: {what}")
    for loop in parsed.find_all(nodes.For):
        if next(loop.find_all(nodes.For), None) is not None or loop.recursive:
            raise InvalidArgument(field, f"line {loop.lineno}: a loop inside of a loop")


@lru_cache(maxsize=1)
def _environment() -> LimitedEnvironment:
    environment = LimitedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    for name in ("range", "lipsum"):
        del environment.globals[name]
    environment.limit_filters()
    return environment
