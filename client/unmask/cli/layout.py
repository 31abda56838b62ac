"""Tokens on lines: broken before words where possible, never inside a character."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len, chop_cells

NEWLINE = "⏎"
"""Shown where a token holds a line break."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A token, or a part of one that is too long for a line."""

    index: int
    """Which token."""
    text: str
    """As shown: no control characters."""

    @property
    def width(self) -> int:
        """In terminal cells."""
        return cell_len(self.text)


def lay_out(texts: Sequence[str], width: int) -> list[list[Piece]]:
    """The lines of `texts`, each at most `width` cells wide; every token is on some line.

    A token's line break is shown as `⏎` and then made. A token without text, such as an end token,
    is shown as `∅`.
    """
    lines: list[list[Piece]] = []
    line: list[Piece] = []
    used = 0
    for word in _words(texts):
        needed = sum(piece.width for piece in word)
        if line and used + needed > width:
            lines.append(line)
            line, used = [], 0
            word = _without_leading_space(word)
        for piece in _fitting(word, width):
            if line and used + piece.width > width:
                lines.append(line)
                line, used = [], 0
            line.append(piece)
            used += piece.width
        if word and word[-1].text.endswith(NEWLINE):
            lines.append(line)
            line, used = [], 0
    if line:
        lines.append(line)
    return lines


def visible(text: str) -> str:
    """A token's text without what a terminal would act on."""
    if not text:
        return "∅"
    shown = text.replace("\r\n", NEWLINE).replace("\n", NEWLINE).replace("\t", "→")
    return "".join(char if char.isprintable() or char == " " else "�" for char in shown)


def _words(texts: Iterable[str]) -> Iterator[list[Piece]]:
    """Tokens that should stay together: a word goes on until a token begins with a space."""
    word: list[Piece] = []
    for index, text in enumerate(texts):
        piece = Piece(index, visible(text))
        if word and (piece.text[0] == " " or word[-1].text.endswith(NEWLINE)):
            yield word
            word = []
        word.append(piece)
    if word:
        yield word


def _without_leading_space(word: list[Piece]) -> list[Piece]:
    first = word[0]
    stripped = first.text.lstrip(" ")
    return [Piece(first.index, stripped or first.text), *word[1:]]


def _fitting(word: Iterable[Piece], width: int) -> Iterator[Piece]:
    for piece in word:
        if piece.width <= width:
            yield piece
        else:
            for part in chop_cells(piece.text, width):
                yield Piece(piece.index, part)
