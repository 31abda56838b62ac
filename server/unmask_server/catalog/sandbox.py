"""A Jinja sandbox whose templates can neither reach anything nor take long nor grow large.

Jinja's own sandbox keeps templates from Python's insides, not from time and memory: `'a' * 10**10`,
loops in loops, `x.replace('', x)` or `'%1000000000d' % 1` are fine by it. Here whatever makes
something larger is measured before it is done, and every step of a loop and every call looks at the
clock (of the thread's own CPU time, so that a busy machine changes no answer).
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

SECONDS = 2.0
"""Of CPU time, for one rendering; usual ones take less than a thousandth of it."""
MAX_TEXT = 4_000_000
"""Characters that a rendering may write."""
MAX_WORK = 2**26
"""Characters or items that one operation may come to, and all of a rendering together."""
MAX_BITS = 10_000
"""Of a number."""
_WIDTH = re.compile(r"\d{5,}|\*")
"""In a format, what could pad to any length."""


class TemplateLimitError(TemplateError):
    """A template would take too long or write too much."""


class _Meter:
    """What one rendering has used up."""

    def __init__(self) -> None:
        self._deadline = time.thread_time() + SECONDS
        self._work = 0
        self._text = 0

    def charge(self, work: int) -> None:
        self._work += work
        if self._work > MAX_WORK:
            raise TemplateLimitError("it would put together too much")
        if time.thread_time() > self._deadline:
            raise TemplateLimitError(f"it takes longer than {SECONDS:g} s")

    def write(self, characters: int) -> None:
        self._text += characters
        if self._text > MAX_TEXT:
            raise TemplateLimitError(f"it would write more than {MAX_TEXT} characters")
        self.charge(1)


_meter: ContextVar[_Meter | None] = ContextVar("unmask_template_meter", default=None)


def render(template: Template, values: Mapping[str, Any]) -> str:
    """What a template of a `LimitedEnvironment` writes.

    Raises:
        TemplateLimitError: too much, or it takes too long.

    """
    meter = _Meter()
    before = _meter.set(meter)
    try:
        parts = []
        for part in template.generate(values):
            meter.write(len(part))
            parts.append(part)
        return "".join(parts)
    finally:
        _meter.reset(before)


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox. `limit_filters` is to be called when all filters are there."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def limit_filters(self) -> None:
        """Measure what filters are given and give."""
        for name, function in self.filters.items():
            self.filters[name] = _limited(function)
        self.filters[_STEPS] = _steps
        self.filters[_JOINED] = _joined
        # It makes text of any length, and no model's template needs it.
        self.globals.pop("lipsum", None)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """See `SandboxedEnvironment`."""
        _check_operation(operator, left, right)
        result = super().call_binop(context, operator, left, right)
        _charge(_size(result))
        return result

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """See `SandboxedEnvironment`."""
        _check_growth(getattr(__obj, "__self__", None), (*args, *kwargs.values()))
        result = super().call(__context, __obj, *args, **kwargs)
        _charge(_size(result))
        return result

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """See `SandboxedEnvironment`."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        text: str = value.__self__

        @functools.wraps(wrapped)
        def checked(*args: Any, **kwargs: Any) -> str:
            _check_format(text)
            _check_growth(text, (*args, *kwargs.values()))
            return wrapped(*args, **kwargs)

        return checked

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        return super()._generate(_Metered().visit(source), *args, **kwargs)


_STEPS, _JOINED = "_steps", "_joined"


class _Metered(NodeTransformer):
    """Puts a meter into loops, and makes `a ~ b` something that can be measured."""

    def visit_For(self, node: nodes.For) -> nodes.For:  # noqa: N802 - named by jinja2
        self.generic_visit(node)
        node.iter = _filter(node.iter, _STEPS)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:  # noqa: N802
        self.generic_visit(node)
        return _filter(nodes.List(node.nodes, lineno=node.lineno), _JOINED)


def _filter(value: nodes.Node, name: str) -> nodes.Expr:
    made = nodes.Filter(value, name, [], [], None, None, lineno=value.lineno)
    made.environment = value.environment
    if isinstance(value, nodes.List):
        value.environment = made.environment
    return made


def _steps(items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        _charge(16)
        yield item


def _joined(parts: list[Any]) -> str:
    texts = [str(part) for part in parts]
    size = sum(map(len, texts))
    if size > MAX_WORK:
        raise TemplateLimitError("it would put together too much")
    _charge(size)
    return "".join(texts)


def _limited(function: Callable[..., Any]) -> Callable[..., Any]:
    # What the filter wants of its environment (`jinja_pass_arg`) is copied with its attributes.
    passed = 1 if hasattr(function, "jinja_pass_arg") else 0

    @functools.wraps(function)
    def measured(*args: Any, **kwargs: Any) -> Any:
        value, *others = args[passed:] or (None,)
        if function.__name__ == "do_format":
            _check_format(str(value))
        _check_growth(value, (*others, *kwargs.values()))
        result = function(*args, **kwargs)
        _charge(_size(result))
        return result

    return measured


def _check_growth(value: Any, others: Iterable[Any]) -> None:
    """Refuse what might come to too much: a value as often, or as wide, as an argument says."""
    largest = max((_weight(other) for other in others), default=0)
    if (_size(value) + 1) * (largest + 1) > MAX_WORK:
        raise TemplateLimitError("it would put together too much")


def _check_operation(operator: str, left: Any, right: Any) -> None:
    sizes = _size(left), _size(right)
    if operator == "%" and isinstance(left, str):
        _check_format(left)
    if not any(sizes) and isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * (abs(right) if operator == "**" else 1)
        if operator in ("*", "**") and bits + right.bit_length() > MAX_BITS:
            raise TemplateLimitError("it would compute with too large a number")
    elif operator == "+" and sum(sizes) > MAX_WORK:
        raise TemplateLimitError("it would put together too much")
    elif operator in ("*", "%"):
        _check_growth(left, (right,))
        _check_growth(right, (left,))


def _check_format(text: str) -> None:
    if _WIDTH.search(text):
        raise TemplateLimitError("it would write with too large a width")


def _charge(work: int) -> None:
    meter = _meter.get()
    # Without one it is being compiled: constants are computed, within the limits of one operation.
    if meter is not None:
        meter.charge(work + 1)


def _size(value: Any) -> int:
    return len(value) if isinstance(value, str | bytes | list | tuple | dict) else 0


def _weight(value: Any) -> int:
    return abs(value) if isinstance(value, int) else _size(value)
