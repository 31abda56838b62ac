"""The kinds of verifiers, and the grader that applies them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any

import re2

from unmask_server.catalog.errors import FailedPrecondition, InvalidArgument
from unmask_server.catalog.types import Verifier, VerifierKind
from unmask_server.catalog.verifiers import gym
from unmask_server.catalog.verifiers.numbers import (
    last_boxed,
    last_number,
    leading_number,
    parse_number,
)
from unmask_server.catalog.verifiers.pool import Answered, WorkerPool
from unmask_server.engines.base import FinishReason
from unmask_server.reasons import Reason

_VERSIONS = {
    VerifierKind.LAST_NUMBER: 1,
    VerifierKind.HASH_ANSWER: 1,
    VerifierKind.BOXED: 1,
    VerifierKind.EXACT: 1,
    VerifierKind.REGEX: 1,
    # math-verify's own behaviour changes between releases: 90 stands for 0.9.0.
    VerifierKind.MATH_VERIFY: 90,
    VerifierKind.FORMAT: 1,
    VerifierKind.LENGTH: 1,
    VerifierKind.EXTERNAL: 1,
    VerifierKind.OBJECTIVE: 1,
}
"""Of the grading code of each kind. Raise one when what it grades changes."""


def version_of(kind: VerifierKind) -> int:
    """The version of a kind's grading code.

    Raises:
        FailedPrecondition: it is a library's that is not installed.

    """
    return gym.version_number() if kind is VerifierKind.REASONING_GYM else _VERSIONS[kind]


BUILT_IN = tuple(kind for kind in VerifierKind if kind.compares and kind is not VerifierKind.REGEX)
"""Kinds that work without options; they exist by their names without registration."""

_OPTIONS = {
    VerifierKind.EXACT: {"ignore_case"},
    VerifierKind.REGEX: {"pattern", "ignore_case"},
    VerifierKind.REASONING_GYM: {"extract"},
    VerifierKind.FORMAT: {"pattern"},
    VerifierKind.LENGTH: {"limit"},
    VerifierKind.EXTERNAL: {"source"},
}
_NO_TEXT = (VerifierKind.LENGTH, VerifierKind.EXTERNAL)
"""Kinds that look at no text, so that it does not matter whether it was cut off."""
_DEFAULTS = {"truncated": "fail", "ignore_case": "false", "extract": "tag"}


def canonical_options(options: Mapping[str, str]) -> dict[str, str]:
    """The options that say something: a default that is spelt out is the same verifier."""
    return {name: value for name, value in options.items() if _DEFAULTS.get(name) != value}


def check_options(kind: VerifierKind, options: Mapping[str, str]) -> None:
    """Refuse options that a kind does not have, and patterns that are none."""
    allowed = {*(() if kind in _NO_TEXT else ("truncated",)), *_OPTIONS.get(kind, ())}
    for name in options:
        if name not in allowed:
            raise InvalidArgument(
                f"options[{name!r}]", f"{kind.value} has only {', '.join(sorted(allowed))}"
            )
    if options.get("truncated", "fail") not in ("fail", "grade"):
        raise InvalidArgument("options['truncated']", "is `fail` or `grade`")
    if options.get("ignore_case", "false") not in ("true", "false"):
        raise InvalidArgument("options['ignore_case']", "is `true` or `false`")
    if options.get("extract", "tag") not in ("tag", "all"):
        raise InvalidArgument("options['extract']", "is `tag` or `all`")
    if kind is VerifierKind.LENGTH:
        limit = options.get("limit", "")
        if not (limit.isascii() and limit.isdigit() and 1 <= len(limit) <= 9 and int(limit)):
            raise InvalidArgument("options['limit']", "give a number of tokens, at least 1")
    if kind is VerifierKind.EXTERNAL and not options.get("source", "").strip():
        raise InvalidArgument(
            "options['source']", "say where the numbers are from, e.g. a model and its version"
        )
    if kind in (VerifierKind.REGEX, VerifierKind.FORMAT):
        if not options.get("pattern"):
            raise InvalidArgument("options['pattern']", "give the pattern to look for")
        try:
            _pattern(options["pattern"])
        except re2.error as error:
            reason = error.args[0] if error.args else error
            reason = reason.decode(errors="replace") if isinstance(reason, bytes) else reason
            raise InvalidArgument("options['pattern']", f"no RE2 pattern: {reason}") from None


def reference_of(verifier: Verifier, fields: Mapping[str, Any]) -> str:
    """What of a question a verifier compares with; empty if the question lacks it."""
    key = gym.ORIGIN if verifier.kind is VerifierKind.REASONING_GYM else "answer"
    return str(fields.get(key, ""))


def check_reference(verifier: Verifier, reference: str, grader: Grader) -> str | None:
    """Why a verifier could grade nothing by this `reference_of`; None if it can."""
    if not verifier.kind.compares:
        return None
    if verifier.kind is VerifierKind.REASONING_GYM:
        return grader.gym.problem(reference)
    if not reference.strip():
        return "the answer is empty"
    match verifier.kind:
        case VerifierKind.LAST_NUMBER | VerifierKind.HASH_ANSWER:
            if parse_number(reference) is None:
                return (
                    f"the answer {reference!r} is no number, so {verifier.kind.value} cannot grade"
                )
        case VerifierKind.BOXED:
            if not _normal(reference):
                return f"the answer {reference!r} is nothing that a box could hold"
        case VerifierKind.MATH_VERIFY:
            if not grader.parses(reference):
                return f"the answer {reference!r} is nothing that math_verify can compare"
        case _:
            pass
    return None


def reference_problem(verifier: Verifier, fields: Mapping[str, Any], grader: Grader) -> str | None:
    """Why a verifier, or a term of it, could grade nothing by a question; None if it can."""
    parts = [part for part, _ in verifier.terms] or [verifier]
    found = (check_reference(part, reference_of(part, fields), grader) for part in parts)
    return next((problem for problem in found if problem is not None), None)


class Grader:
    """Grades texts. Callable from threads; what may be slow runs in processes of its own."""

    def __init__(self) -> None:
        self._pool = WorkerPool()
        self.gym = gym.ReasoningGym(self._pool)

    def grade_many(
        self, verifier: Verifier, items: Sequence[tuple[str, str, FinishReason]]
    ) -> list[float]:
        """Rewards in [0, 1] of (text, reference, finish), in order.

        A text that was cut off by its limit has failed, unless the verifier's option says to grade
        it like any other. One that cannot be graded in time has failed, too.

        Raises:
            FailedPrecondition: a library that the verifier needs is missing, or another version.

        """
        self.check_ready(verifier)
        return [
            0.0
            if finish is FinishReason.LENGTH and not verifier.grades_truncated
            else self._grade(verifier, text, reference)
            for text, reference, finish in items
        ]

    def check_ready(self, verifier: Verifier) -> None:
        """Refuse a verifier whose library is missing, or whose code is of another version.

        Raises:
            FailedPrecondition: so it is.

        """
        if verifier.kind is VerifierKind.REASONING_GYM:
            self.gym.check_version(verifier.version)
        elif verifier.version != _VERSIONS[verifier.kind]:
            raise FailedPrecondition(
                Reason.VERIFIER_OUTDATED,
                f"verifier {verifier.id} is {verifier.kind.value} of version {verifier.version}, "
                f"and this server grades by version {_VERSIONS[verifier.kind]}: name another one, "
                "or register the question anew",
                verifier=verifier.id,
            )
        for part, _ in verifier.terms:
            self.check_ready(part)

    def parses(self, reference: str) -> bool:
        """Whether math_verify can compare with a reference."""
        return self._pool.ask("mathematics", "parses", reference) == Answered(True)

    def close(self) -> None:
        """End the worker processes."""
        self._pool.close()

    def _grade(self, verifier: Verifier, text: str, reference: str) -> float:
        match verifier.kind:
            case VerifierKind.MATH_VERIFY:
                answer = self._pool.ask("mathematics", "right", text, reference)
                return float(answer == Answered(True))
            case VerifierKind.REASONING_GYM:
                whole = verifier.options.get("extract") == "all"
                return self.gym.score(text, reference, whole=whole)
            case _:
                return float(_right(verifier, text, reference))


def _right(verifier: Verifier, text: str, reference: str) -> bool:
    match verifier.kind:
        case VerifierKind.LAST_NUMBER:
            return _same(last_number(text), reference)
        case VerifierKind.HASH_ANSWER:
            _, mark, tail = text.rpartition("####")
            return bool(mark) and _same(leading_number(tail), reference)
        case VerifierKind.BOXED:
            content = last_boxed(text)
            if content is None:
                return False
            return _same(parse_number(content), reference) or (
                _normal(content) == _normal(reference)
            )
        case VerifierKind.EXACT:
            return _equal(text, reference, verifier)
        case VerifierKind.REGEX:
            found = _last_match(verifier.options["pattern"], text)
            return found is not None and _equal(found, reference, verifier)
        case VerifierKind.FORMAT:
            return _pattern(verifier.options["pattern"]).search(text) is not None
        case VerifierKind.MATH_VERIFY | VerifierKind.REASONING_GYM:
            raise AssertionError("graded by the workers")
        case VerifierKind.LENGTH | VerifierKind.EXTERNAL | VerifierKind.OBJECTIVE:
            raise AssertionError("not from a text alone: `growth.outcomes`")


@lru_cache(maxsize=64)
def _pattern(pattern: str) -> Any:
    """A compiled RE2 pattern: matching takes time linear in the text, whatever the pattern."""
    options = re2.Options()
    options.log_errors = False
    return re2.compile(pattern, options)


def _last_match(pattern: str, text: str) -> str | None:
    """The last match: its first group if the pattern has one, else all of it."""
    compiled = _pattern(pattern)
    found: str | None = None
    for match in compiled.finditer(text):
        found = match.group(1 if compiled.groups else 0)
    return found


def _same(number: Fraction | None, reference: str) -> bool:
    return number is not None and number == parse_number(reference)


def _equal(text: str, reference: str, verifier: Verifier) -> bool:
    a, b = " ".join(text.split()), " ".join(reference.split())
    if verifier.options.get("ignore_case") == "true":
        a, b = a.casefold(), b.casefold()
    return a == b


def _normal(text: str) -> str:
    text = re.sub(r"\\(?:text|mathrm|mbox)\{([^{}]*)\}", r"\1", text)
    return re.sub(r"\s+|\\[,;! ]|\\left|\\right|\$", "", text).replace("\\dfrac", "\\frac")
