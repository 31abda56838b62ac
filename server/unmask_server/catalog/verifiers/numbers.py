"""Numbers and boxes in texts."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from fractions import Fraction

_NUMBER = re.compile(
    r"""
    (?<![\w.])                       # not the middle of a word or a number
    [-+−]?\s?[$€£]?\s?               # sign, currency
    (?:
      \d+\s+\d+\s?/\s?\d+            # a mixed number
    |
      (?:\d{1,3}(?:,\d{3})+|\d+)     # digits, perhaps in groups
      (?:\.\d+)?
      (?:\s?/\s?\d+)?                # a fraction
    )
    \s?%?
    """,
    re.VERBOSE,
)
_MIXED = re.compile(r"^([-+]?)(\d+)\s+(\d+)\s*/\s*(\d+)$")


def parse_number(text: str) -> Fraction | None:
    """The number that a text is, exactly; None if it is none.

    Thousands separators, currency signs, a trailing period, fractions, mixed numbers and per cent
    (28% is 28/100) are understood.
    """
    cleaned = text.strip().strip("$€£ ").replace("−", "-").replace("\\$", "").replace("\\%", "%")
    cleaned = cleaned.rstrip(".").strip().rstrip("$€£").strip()
    cleaned = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", cleaned)
    cleaned = re.sub(r"^([-+])\s*[$€£]?\s*", r"\1", cleaned)
    percent = cleaned.endswith("%")
    cleaned = cleaned.removesuffix("%").strip()
    value = _plain(cleaned)
    if value is None:
        return None
    return value / 100 if percent else value


def _plain(text: str) -> Fraction | None:
    if mixed := _MIXED.match(text):
        sign, whole, top, bottom = mixed.groups()
        if int(bottom) == 0:
            return None
        value = int(whole) + Fraction(int(top), int(bottom))
        return -value if sign == "-" else value
    try:
        if "/" in text:
            top, bottom = text.split("/")
            return Fraction(int(top), int(bottom))
        if len(text) > 400 or "e" in text.lower():
            return None
        number = Decimal(text)
        return Fraction(number) if number.is_finite() else None
    except (ValueError, ZeroDivisionError, InvalidOperation):
        return None


def last_number(text: str) -> Fraction | None:
    """The last number in a text."""
    last = None
    for match in _NUMBER.finditer(text):
        last = match.group()
    return None if last is None else parse_number(last)


def first_number(text: str) -> Fraction | None:
    """The first number in a text."""
    match = _NUMBER.search(text)
    return None if match is None else parse_number(match.group())


def last_boxed(text: str) -> str | None:
    """The content of the last `\\boxed{…}` or `\\fbox{…}`; None if there is none that is closed."""
    start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if start < 0:
        return None
    brace = text.find("{", start)
    if brace < 0 or text[start:brace].strip() not in ("\\boxed", "\\fbox"):
        return None
    depth = 0
    for i in range(brace, len(text)):
        if text[i] == "{":
            depth += 1
        elif text[i] == "}":
            depth -= 1
            if depth == 0:
                return text[brace + 1 : i]
    return None
