"""Numbers and boxes in texts. A number is a `Fraction`: equality is exact, never up to a float."""

from __future__ import annotations

import re
from fractions import Fraction

_CURRENCY = "$€£¥"
_DIGITS = r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
_NUMBER = re.compile(
    rf"""
    (?<![\w.])                                  # not the middle of a word or a number
    [-+]?(?:\s?[{_CURRENCY}]\s?[-+]?)?          # -5, -$5, $-5; in `7 - 4` there is no sign
    (?:
        \d+\s+\d+\s?/\s?\d+(?!\.?\d)            # a mixed number
      | {_DIGITS}\s?/\s?\d+(?!\.?\d)            # a fraction
      | {_DIGITS}(?:[eE][-+]?\d{{1,2}}(?!\d)|(?![eE]\d))
    )
    """,
    re.VERBOSE | re.ASCII,
)
_VALUE = re.compile(
    rf"""
    (?P<sign>[-+]?)
    (?: (?P<whole>\d+)\s+(?P<top>\d+)\s*/\s*(?P<bottom>\d+)
      | (?P<over>{_DIGITS})\s*/\s*(?P<under>\d+)
      | (?P<digits>{_DIGITS})(?:[eE](?P<exponent>[-+]?\d{{1,2}}))?
    )
    """,
    re.VERBOSE | re.ASCII,
)
_LATEX_FRACTION = re.compile(
    r"(\d*)\s*\\[dt]?frac\s*(?:\{\s*(\d+)\s*\}|(\d))\s*(?:\{\s*(\d+)\s*\}|(\d))", re.ASCII
)
_LONGEST = 400
"""Characters of a number; a longer one is a stuck generation and no answer."""
_BEFORE_ANSWER = " \t\r\n:=*(\\"
"""What may stand between a mark and the number it marks."""


def parse_number(text: str) -> Fraction | None:
    r"""The number that a text is; None if it is none or there is something else beside it.

    Understood are signs, thousands separators (1,234), decimals, exponents (1e3), fractions (2/3,
    \frac{2}{3}), mixed numbers (2 2/3, 2\frac{2}{3}) and a trailing period. Units are dropped: 28%
    is 28, not 0.28, as $5 is 5.
    """
    text = text.strip()
    if len(text) > _LONGEST:
        return None
    text = _plain(text).rstrip(". \t").removesuffix("%").rstrip(_CURRENCY + " \t")
    text = re.sub(rf"^([-+]?)\s*[{_CURRENCY}]\s*", r"\1", text)
    text = _LATEX_FRACTION.sub(lambda m: f"{m[1]} {m[2] or m[3]}/{m[4] or m[5]}".lstrip(), text)
    match = _VALUE.fullmatch(text)
    if match is None:
        return None
    try:
        value = _magnitude(match)
    except ZeroDivisionError:
        return None
    return -value if match["sign"] == "-" else value


def _magnitude(match: re.Match[str]) -> Fraction:
    if match["whole"] is not None:
        return int(match["whole"]) + Fraction(int(match["top"]), int(match["bottom"]))
    if match["over"] is not None:
        return _decimal(match["over"]) / int(match["under"])
    return _decimal(match["digits"]) * Fraction(10) ** int(match["exponent"] or 0)


def _decimal(digits: str) -> Fraction:
    return Fraction(digits.replace(",", ""))


def _plain(text: str) -> str:
    """The same with the minus sign, separators and units of ordinary text."""
    text = text.replace("−", "-").replace("{,}", ",").replace("\\!", "")
    return text.replace("\\$", "$").replace("\\%", "%")


def last_number(text: str) -> Fraction | None:
    """The last number in a text; None if there is none."""
    last = None
    for match in _NUMBER.finditer(_plain(text)):
        last = match.group()
    return None if last is None else parse_number(last)


def leading_number(text: str) -> Fraction | None:
    """The number with which a text begins, after white space and marks of emphasis."""
    match = _NUMBER.match(_plain(text).lstrip(_BEFORE_ANSWER))
    return None if match is None else parse_number(match.group())


def marks_box(text: str) -> bool:
    """Whether a text opens a box, closed or not."""
    return "\\boxed" in text or "\\fbox" in text


def last_boxed(text: str) -> str | None:
    r"""The content of the last \boxed{…} or \fbox{…}; None if that is not closed or not there."""
    start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if start < 0:
        return None
    brace = text.find("{", start)
    if brace < 0 or text[start:brace].strip() not in ("\\boxed", "\\fbox"):
        return None
    depth = 0
    i = brace
    while i < len(text):
        if text[i] == "\\":
            i += 1  # \{ and \} are characters, no braces
        elif text[i] == "{":
            depth += 1
        elif text[i] == "}":
            depth -= 1
            if depth == 0:
                return text[brace + 1 : i]
        i += 1
    return None
