"""Templates, users' and models', neither reach the server nor burden it, whatever they say."""

from __future__ import annotations

from contextlib import suppress

import pytest
from unmask_server.catalog import sandbox
from unmask_server.catalog.chat import render_chat
from unmask_server.catalog.errors import InvalidArgument
from unmask_server.catalog.sandbox import LimitedEnvironment, render
from unmask_server.catalog.templates import check_template, render_context, render_raw


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would take too long takes a tenth of it."""
    monkeypatch.setattr(sandbox, "SECONDS", sandbox.SECONDS / 10)


DOUBLED = "{% set x = 'ab' %}" + "{% set x = x ~ x %}" * 60 + "{{ x | length }}"


@pytest.mark.parametrize(
    "template",
    [
        # Python's insides.
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ '{0.__class__.__mro__}'.format('') }}",
        "{{ messages | map(attribute='__class__') | list }}",
        "{{ messages | attr('__class__') }}",
        "{{ messages.append(1) }}",
        "{{ self.__init__ }}",
        "{% include '/etc/passwd' %}",
        "{% extends '/etc/passwd' %}",
        "{% import 'os' as os %}",
        # Time.
        "{% for a in range(10 ** 9) %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro m(n) %}{{ m(n) }}{% endmacro %}{{ m(1) }}",
        "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}{{ m(60) }}",
        "{% for a in [[1]] recursive %}{{ loop(a * 1000) }}{% endfor %}",
        # Numbers.
        "{{ 9 ** 9 ** 9 ** 9 }}",
        "{% set n = namespace(x=9) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}",
        # Texts and lists.
        "{{ 'a' * 10 ** 10 }}",
        "{{ 10 ** 10 * 'a' }}",
        "{{ [0] * 10 ** 10 }}",
        "{{ 'a' * 8000 * 9000 }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '%*d' % (1000000000, 1) }}",
        "{{ '%1000000000d' | format(1) }}",
        "{{ '{:>1000000000}'.format(1) }}",
        "{{ '{:>{}}'.format(1, 1000000000) }}",
        "{{ '{a:>1000000000}'.format_map({'a': 1}) }}",
        "{{ 'a'.center(1000000000) }}",
        "{{ 'a'.zfill(1000000000) }}",
        "{{ 'a' | center(1000000000) }}",
        "{{ 'a\nb' | indent(1000000000) }}",
        "{{ 'a' | wordwrap(1, wrapstring='b' * 60000000) }}",
        "{{ {'a': 1} | tojson(indent=1000000000) }}",
        "{{ 1.5 | round(1000000000) }}",
        "{{ ('a' * 9000).replace('a', 'b' * 9000) }}",
        "{{ ('a' * 9000) | replace('a', 'b' * 9000) }}",
        "{{ ('a' * 9000).join('b' * 9000) }}",
        "{{ ('b' * 9000) | join('a' * 9000) }}",
        "{{ [1, 2] | batch(1000000000, 0) | list }}",
        "{{ lipsum(n=100000) }}",
        DOUBLED,
        DOUBLED.replace("x ~ x", "x + x"),
        DOUBLED.replace("x ~ x", "[x, x] | join"),
        DOUBLED.replace("x ~ x", "x | replace('a', 'aa')"),
        "{% set x = [1] %}" + "{% set x = x + x %}" * 60,
        "{% for a in range(90000) %}" + "x" * 100 + "{% endfor %}",
        "{% for a in range(90000) %}{{ messages | tojson }}{% endfor %}",
        # What Python itself does not compile.
        "{% for a in 'x' %}" * 30 + "{% endfor %}" * 30,
        "{% if 1 %}" * 200 + "{% endif %}" * 200,
        "{{ " + "not " * 20_000 + "1 }}",
        "{{ " + "(" * 5_000 + "1" + ")" * 5_000 + " }}",
        "{{ " + "-" * 20_000 + "1 }}",
    ],
)
def test_templates_of_models_neither_reach_nor_burden_the_server(template: str) -> None:
    text = ""
    # Refused or harmless: nothing of what was to be reached, and no more than may be written.
    with suppress(InvalidArgument):
        text = render_chat(template, "a question " * 1000, {"eos_token": "</s>"})
    assert len(text) <= sandbox.MAX_TEXT
    assert "class" not in text
    assert "root:" not in text


@pytest.mark.parametrize(
    "template",
    [
        DOUBLED.replace("| length", ""),
        "{{ " + " ~ ".join(["question"] * 1500) + " }}",
        "{{ question | join(question) }}",
        "{% for a in question %}" + "{{ question }}" * 100 + "{% endfor %}",
        "{% for a in question %}{% if a %}{{ a }}{% endif %}{% endfor %}" * 100,
        "{{ question + question + question }}" * 500,
    ],
)
def test_templates_of_users_write_no_more_than_they_may(template: str) -> None:
    check_template(template, "context.template")
    with pytest.raises(InvalidArgument, match=r"it would|it takes"):
        render_context(template, {"question": "x" * 100_000}, question_id="que-1")


@pytest.mark.parametrize(
    "template",
    [
        "{% if a %}" * 200 + "{% endif %}" * 200,
        "{{ " + "not " * 4_900 + "1 }}",
        "{{ " + "(" * 9_000 + "1" + ")" * 9_000 + " }}",
        "{{ " + "[" * 9_000 + "]" * 9_000 + " }}",
        "{{ a" + ".a" * 9_000 + " }}",
        "{{ a" + "[0]" * 6_000 + " }}",
    ],
)
def test_what_is_nested_too_deeply_is_no_template(template: str) -> None:
    with pytest.raises(InvalidArgument):
        check_template(template, "context.template")


def test_usual_templates_write_what_they_always_did() -> None:
    chat = (
        "{% for m in messages %}{{ '<|' ~ m.role ~ '|>' + m['content'] | trim }}"
        "{% if loop.last %}{{ eos_token * 2 }}{% endif %}{% endfor %}"
        "{{ '%s-%03d' % ('a', 7) }}{{ '{:>4}'.format(1) }}{{ [1, 2] | join(', ') }}"
        "{% for i in range(loops) %}{{ loop.index }}/{{ loop.length }} {% endfor %}"
        "{% set ns = namespace(n=0) %}{% for i in range(3) %}{% set ns.n = ns.n + i %}{% endfor %}"
        "{{ ns.n }}{{ messages | map(attribute='role') | list }}{{ 2 ** 10 }}"
        "{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}"
    )
    text = render_chat(chat, " hi ", {"eos_token": "</s>", "loops": 2})  # type: ignore[dict-item]
    assert text == ("<|user|>hi</s></s>a-007   11, 21/2 2/2 3['user']1024a1")
    long = "word " * 200_000
    assert render_raw("Q: {{ content }}!", long) == f"Q: {long}!"
    assert render_context("{{ question ~ '?' }}", {"question": "x"}, question_id="q") == "x?"


def test_a_rendering_within_another_has_its_own_measure() -> None:
    environment = LimitedEnvironment()
    environment.limit_filters()
    environment.globals["inner"] = lambda: render(environment.from_string("{{ 'a' * 9 }}"), {})
    assert render(environment.from_string("{{ inner() }}{{ inner() }}"), {}) == "a" * 18
