"""The token view: where in a generation a teacher's push helps and where it hurts.

With colours a scored token lies on a background from red (cosine -1) over grey (0) to green (+1),
washed out while its interval includes zero; all others are dim. Without colours, marks stand below
the tokens. White on middling backgrounds reads well in dark terminals and in light ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.style import Style
from rich.text import Text

from unmask.cli.layout import Piece, lay_out
from unmask.cli.scores import MEANINGS, Push, TokenScore, Verdict

_RED = (203, 36, 49)
_GREY = (112, 117, 124)
_GREEN = (16, 132, 80)
_WASHED_OUT = 0.35
"""Share of its colour that an undecided token keeps."""
_FOREGROUND = "rgb(255,255,255)"
_INDENT = 2
_MAX_WIDTH = 100

_DIM = Style(dim=True)
_UNBOUNDED = Style(underline=True, bold=True)
_SCORED = (Verdict.HELPS, Verdict.HURTS, Verdict.UNDECIDED)
_UNSCORED = (Verdict.FLAT, Verdict.NO_SIGNAL, Verdict.NO_DATA, Verdict.NOT_COVERED)


def is_plain(console: Console, plain: bool = False) -> bool:
    """Whether to print marks instead of colours there."""
    return plain or console.no_color or console.color_system is None


def shade(cosine: float, decided: bool) -> Style:
    """The background of a scored token.

    Args:
        cosine: in [-1, 1].
        decided: whether its interval excludes zero.

    """
    strength = min(abs(cosine), 1.0) * (1.0 if decided else _WASHED_OUT)
    end = _GREEN if cosine > 0 else _RED
    red, green, blue = (
        round(grey + (colour - grey) * strength) for grey, colour in zip(_GREY, end, strict=True)
    )
    return Style.parse(f"{_FOREGROUND} on rgb({red},{green},{blue})")


def token_view(
    console: Console,
    texts: Sequence[str],
    scores: Mapping[Push, Mapping[int, TokenScore]],
    *,
    plain: bool = False,
) -> RenderableType:
    """One block for each push over the same tokens, and a legend.

    Args:
        console: where it will be printed; its width and colours count.
        texts: of the trajectory's tokens.
        scores: by position; a position without one is shown as having no data.
        plain: marks instead of colours, whatever the console can do.

    """
    marks = is_plain(console, plain)
    lines = lay_out(texts, max(20, min(console.width, _MAX_WIDTH) - _INDENT))
    seen: Counter[Verdict] = Counter()
    parts: list[RenderableType] = []
    for push, by_position in scores.items():
        verdicts = {
            position: by_position[position].verdict if position in by_position else Verdict.NO_DATA
            for position in range(len(texts))
        }
        counts = Counter(verdicts.values())
        seen.update(counts)
        parts.append(Text(str(push), style="bold"))
        parts.append(Text(_in_words(counts), style="" if marks else "dim"))
        body = _marked(lines, verdicts) if marks else _coloured(lines, verdicts, by_position)
        parts.append(Padding(body, (0, 0, 1, _INDENT), expand=False))
    parts.append(_plain_legend(seen) if marks else _colour_legend(seen))
    return Group(*parts)


def _coloured(
    lines: Sequence[Sequence[Piece]],
    verdicts: Mapping[int, Verdict],
    scores: Mapping[int, TokenScore],
) -> Text:
    text = Text(no_wrap=True)
    for number, line in enumerate(lines):
        text.append("\n" if number else "")
        for piece in line:
            verdict = verdicts[piece.index]
            body = piece.text.lstrip(" ") or piece.text
            text.append(" " * (len(piece.text) - len(body)))
            if verdict in _SCORED:
                cosine = scores[piece.index].alignment.cosine.median
                text.append(body, shade(cosine, verdict is not Verdict.UNDECIDED))
            else:
                text.append(body, _UNBOUNDED if verdict is Verdict.UNBOUNDED else _DIM)
    return text


def _marked(lines: Sequence[Sequence[Piece]], verdicts: Mapping[int, Verdict]) -> Text:
    rows = []
    for line in lines:
        rows.append("".join(piece.text for piece in line).rstrip())
        rows.append("".join(_mark(piece, verdicts[piece.index]) for piece in line).rstrip())
    return Text("\n".join(rows), no_wrap=True)


def _mark(piece: Piece, verdict: Verdict) -> str:
    """The verdict's mark below every cell of the token, but for the space that it begins with."""
    body = piece.text.lstrip(" ")
    spaces = len(piece.text) - len(body) if body else 0
    return " " * spaces + verdict.value * (piece.width - spaces)


def _in_words(counts: Counter[Verdict]) -> str:
    scored = ", ".join(
        f"{counts[verdict]} {name}"
        for verdict, name in (
            (Verdict.HELPS, "helped"),
            (Verdict.HURTS, "hurt"),
            (Verdict.UNDECIDED, "undecided"),
        )
    )
    others = ", ".join(
        f"{counts[verdict]} {name}"
        for verdict, name in (
            (Verdict.FLAT, "flat"),
            (Verdict.NO_SIGNAL, "no signal"),
            (Verdict.UNBOUNDED, "unbounded"),
            (Verdict.NO_DATA, "no data"),
            (Verdict.NOT_COVERED, "not covered"),
        )
        if counts[verdict]
    )
    return f"{scored}; no score: {others}" if others else scored


def _colour_legend(seen: Counter[Verdict]) -> Text:
    legend = Text()
    legend.append("cosine ", "dim")
    for cosine in (-1.0, -0.5, 0.0, 0.5, 1.0):
        legend.append(f" {cosine:+.1f} " if cosine else "  0  ", shade(cosine, decided=True))
    if seen[Verdict.UNDECIDED]:
        legend.append("  undecided ", "dim")
        for cosine in (-1.0, 1.0):
            legend.append(f" {cosine:+.0f} ", shade(cosine, decided=False))
    if any(seen[verdict] for verdict in _UNSCORED):
        legend.append("  dim: no score", "dim")
    if seen[Verdict.UNBOUNDED]:
        legend.append("  ")
        legend.append("infinite loss", _UNBOUNDED)
    return legend


def _plain_legend(seen: Counter[Verdict]) -> Text:
    rows = [f"{verdict.value}  {MEANINGS[verdict]}" for verdict in Verdict if seen[verdict]]
    return Text("\n".join(rows))
