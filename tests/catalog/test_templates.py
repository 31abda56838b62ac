"""Contexts: what a teacher is shown beside the question."""

from __future__ import annotations

from typing import Any

import pytest
from unmask_server.catalog.errors import InvalidArgument
from unmask_server.catalog.templates import (
    BUILT_IN_CONTEXTS,
    as_text,
    check_template,
    context_template,
    render_context,
)

FIELDS = {
    "question": "2+2?",
    "answer": "4",
    "solution": [{"role": "assistant", "content": "42"}],
    "wrong_solution": "5",
    "hint": "count",
}


def shown(template: str, fields: Any = FIELDS) -> str:
    return render_context(template, fields, question_id="que-1")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("none", "2+2?"),
        ("answer", "2+2?\nThe correct answer is 4."),
        ("hint", "2+2?\nHint: count"),
        ("solution", "2+2?\nA correct solution: 42"),
        ("wrong_solution", "2+2?\nA wrong attempt: 5"),
        ("contrastive", "2+2?\nA correct solution: 42\nA wrong attempt: 5"),
    ],
)
def test_built_in_contexts_have_fixed_texts(name: str, content: str) -> None:
    assert shown(context_template(name, None, "context")) == content


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain", "plain"),
        (5, "5"),
        (True, "true"),
        (["a", "b"], "a\nb"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "a\nb"),
        ([{"role": "user", "content": [{"type": "text", "text": "a"}]}], "a"),
        ('[{"role": "assistant", "content": "42"}]', "42"),
        ('[{"x": "content"}]', '[{"x": "content"}]'),
        ('[not JSON, "content"]', '[not JSON, "content"]'),
        ({"é": 1}, '{"é": 1}'),
    ],
)
def test_fields_are_shown_as_text_and_never_as_a_repr(value: Any, text: str) -> None:
    assert as_text(value) == text


@pytest.mark.parametrize("absent", [{}, {"hint": None}, {"hint": " "}, {"hint": []}])
def test_a_context_whose_field_the_question_lacks_is_refused(absent: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match=r"que-1 has no field 'hint'"):
        shown(BUILT_IN_CONTEXTS["hint"], {"question": "q", **absent})


def test_a_context_may_ask_whether_a_field_is_there() -> None:
    template = "{{ question }}{% if hint is defined %} ({{ hint }}){% endif %}"
    assert shown(template, {"question": "q"}) == "q"
    assert shown(template, {"question": "q", "hint": "h"}) == "q (h)"


@pytest.mark.parametrize(
    ("name", "template", "field"),
    [
        ("nope", None, "context.name"),
        ("mine", "{{ question", "context.template"),
        ("mine", "{{ question | no_such_filter }}", "context.template"),
        ("mine", "x" * 20_001, "context.template"),
    ],
)
def test_a_context_that_is_none_is_refused(name: str, template: str | None, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        context_template(name, template, "context")
    assert caught.value.field == field


@pytest.mark.parametrize("template", ["{{ question.nothing.here }}", "{{ 1 / 0 }}"])
def test_a_template_that_fails_is_told(template: str) -> None:
    check_template(template, "context.template")
    with pytest.raises(InvalidArgument, match="cannot be rendered"):
        shown(template)


@pytest.mark.parametrize(
    "template",
    [
        "{{ question.__class__.__mro__[1].__subclasses__() }}",
        "{{ 9 ** 9 ** 9 ** 9 }}",
        "{{ 'a' * 1000000000 }}",
        "{{ '%80000000d' % 1 }}",
        "{{ question | center(30000000) }}",
        "{{ question.format(1) }}",
        "{{ question | int(1, 2, 3, 4) }}",
        "{% for a in question %}{% for b in question %}x{% endfor %}{% endfor %}",
        "{% macro m() %}x{% endmacro %}",
        "{% include 'x' %}",
    ],
)
def test_templates_neither_reach_nor_burden_the_server(template: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_template(template, "context.template")
    assert caught.value.field == "context.template"


def test_text_of_a_question_is_no_template() -> None:
    assert shown("{{ question }}", {"question": "{{ answer }}", "answer": "4"}) == "{{ answer }}"
