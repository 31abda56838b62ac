"""Numbers and texts as people read them."""

from __future__ import annotations

from unmask.v1 import diagnosis_pb2 as pb

NOTHING = "–"
"""Where there is no number."""

_NOTHING_AT_ALL = 1e-6
"""What lies below is shown as zero."""


def signed(value: float, digits: int = 2) -> str:
    """With a sign, and no sign at what rounds to zero."""
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text


def share(part: float, whole: float) -> str:
    """A percentage; `–` of nothing."""
    return f"{100 * part / whole:.0f}%" if whole else NOTHING


def count(value: float) -> str:
    """Thousands set apart."""
    return f"{value:,.0f}"


def rough(value: float) -> str:
    """A guess: two figures that count."""
    return count(float(f"{value:.2g}"))


def probability(value: float) -> str:
    """Never a certainty: neither 0 nor 1."""
    if value < 0.005:
        return "<0.01"
    return ">0.99" if value > 0.995 else f"{value:.2f}"


def seconds(value: float) -> str:
    """12 s, 3:05, 2:10:00."""
    if value < 60:
        return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def median(interval: pb.Interval, digits: int = 2) -> str:
    """The middle; what is small, but not nothing, keeps one digit."""
    value = interval.median
    if _NOTHING_AT_ALL < abs(value) < 0.5 * 10**-digits:
        return f"{value:+.0e}".replace("e-0", "e-")
    return signed(value, digits)


def bounds(interval: pb.Interval, digits: int = 2) -> str:
    """From the 5% to the 95% quantile, without leading zeros: 80 columns are few."""
    return "…".join(
        signed(value, digits).replace("0.", ".", 1) for value in (interval.low, interval.high)
    )


def clip(text: str, length: int, *, end: bool = False) -> str:
    """On one line and not longer than `length`: its beginning, or its end."""
    text = " ".join(text.split())
    if len(text) <= length:
        return text
    return "…" + text[1 - length :] if end else text[: length - 1] + "…"
