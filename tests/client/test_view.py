"""The token view, as it looks."""

from __future__ import annotations

import io
from textwrap import dedent

import pytest
from rich.cells import cell_len
from rich.console import Console
from unmask.cli.layout import lay_out
from unmask.cli.scores import Push, Verdict, by_push, verdict
from unmask.cli.tables import token_table
from unmask.cli.view import shade, token_view

from tests.client.making import alignment, answers

TEXTS = [" Bags", ",", " 4", " *", " 6", " =", " 2", "4", ".", "\n", "So", " ####", " 24", ""]
BIG: list[float | str] = [
    ".",
    "~",
    0.95,
    ".",
    -0.4,
    ".",
    0.7,
    "0.1",
    ".",
    "~",
    "-0.3",
    "!",
    0.5,
    "_",
]
SELF: list[float | str] = [0.2, ".", ".", ".", ".", ".", -0.95, 0.1, ".", "~", 0.3, ".", ".", "_"]
NAMES = {"tea-1": "big", "tea-2": "self+answer"}


def printed(width: int = 80, plain: bool = False, **console: object) -> str:
    out = io.StringIO()
    screen = Console(file=out, width=width, highlight=False, **console)  # type: ignore[arg-type]
    screen.print(token_view(screen, TEXTS, by_push(answers(BIG, SELF), NAMES), plain=plain))
    return out.getvalue()


def test_without_colours_marks_stand_below_the_tokens() -> None:
    shown = "\n".join(line.rstrip() for line in printed(plain=True).splitlines()) + "\n"
    assert shown == dedent("""\
        big · reverse_kl
        3 helped, 1 hurt, 2 undecided; no score: 4 flat, 2 no signal, 1 unbounded, 1 no
        data
           Bags, 4 * 6 = 24.⏎
           ....~ + . - . +?.~
          So #### 24∅
          ?? !!!! ++_

        self+answer · reverse_kl
        3 helped, 1 hurt, 0 undecided; no score: 8 flat, 1 no signal, 1 no data
           Bags, 4 * 6 = 24.⏎
           ++++. . . . . -+.~
          So #### 24∅
          ++ .... .._

        +  pushes towards success
        -  pushes away from it
        ?  undecided: the interval includes 0
        .  flat: no effect on success to be seen
        ~  the teacher says nothing here
        !  infinite loss: the teacher excludes a token
        _  no rollout yet
    """)


def test_pipes_and_no_color_get_marks_and_no_control_codes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    in_a_pipe = printed()
    assert in_a_pipe == printed(plain=True)
    assert "\x1b" not in in_a_pipe
    monkeypatch.setenv("NO_COLOR", "1")
    assert "48;2" not in printed(force_terminal=True, color_system="truecolor")
    assert "++++." in printed(force_terminal=True, color_system="truecolor")


def test_with_colours_a_token_lies_on_its_cosine() -> None:
    shown = printed(force_terminal=True, color_system="truecolor", no_color=False)
    for score, text in ((0.95, "4"), (-0.4, "6"), (0.7, "2")):
        assert f"{shade(score, True).render(text)}" in shown
    assert shade(-0.3, False).render("So") in shown
    assert "\x1b[2mBags" in shown
    assert "++" not in shown


def test_red_is_away_green_is_towards_grey_is_neither_and_undecided_is_washed_out() -> None:
    def background(cosine: float, decided: bool = True) -> tuple[int, int, int]:
        colour = shade(cosine, decided).bgcolor
        assert colour is not None
        assert colour.triplet is not None
        return (colour.triplet.red, colour.triplet.green, colour.triplet.blue)

    red, _, _ = background(-1.0)
    _, green, _ = background(1.0)
    assert red > 2 * max(background(-1.0)[1:])
    assert green > max(background(1.0)[0], background(1.0)[2])
    grey = background(0.0)
    assert max(grey) - min(grey) < 16
    for end in (-1.0, 1.0):
        distances = [
            sum(abs(a - b) for a, b in zip(background(end, decided), grey, strict=True))
            for decided in (False, True)
        ]
        assert 0 < distances[0] < distances[1] / 2


def test_white_stands_out_from_every_background() -> None:
    def luminance(rgb: tuple[int, ...]) -> float:
        linear = [
            c / 3294.6 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb
        ]  # WCAG 2.1
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for step in range(-20, 21):
        for decided in (False, True):
            colour = shade(step / 20, decided).bgcolor
            assert colour is not None
            assert colour.triplet is not None
            assert 1.05 / (luminance(tuple(colour.triplet)) + 0.05) >= 4.5


@pytest.mark.parametrize("width", [20, 33, 80])
def test_lines_are_never_too_wide_and_no_token_is_lost(width: int) -> None:
    texts = ["Äpfel", " 食べる" * 5, " x" * 60, "\n", "\n\n", " ", "", "\x1b[31m", "a\tb", " end"]
    lines = lay_out(texts, width)
    assert all(sum(piece.width for piece in line) <= width for line in lines)
    assert {piece.index for line in lines for piece in line} == set(range(len(texts)))
    assert not any("\x1b" in piece.text for line in lines for piece in line)


def test_lines_break_before_words() -> None:
    lines = lay_out(["one", " two", "two", " three"], 8)
    assert [[piece.text for piece in line] for line in lines] == [
        ["one"],
        ["two", "two"],
        ["three"],
    ]


@pytest.mark.parametrize("width", [30, 80, 120])
def test_marks_keep_their_place_at_any_width(width: int) -> None:
    lines = printed(width=width, plain=True).splitlines()
    tokens = [i for i, line in enumerate(lines) if "####" in line]
    assert tokens
    for i in tokens:
        assert cell_len(lines[i].rstrip()) == cell_len(lines[i + 1].rstrip())


def test_a_token_counts_as_decided_only_beyond_its_interval() -> None:
    assert verdict(alignment(0.2)) is Verdict.HELPS
    assert verdict(alignment(-0.2)) is Verdict.HURTS
    assert verdict(alignment("0.9")) is Verdict.UNDECIDED
    assert verdict(alignment(".")) is Verdict.FLAT


def test_the_table_has_a_row_for_each_token() -> None:
    scores = by_push(answers(BIG, SELF), NAMES)
    push = Push("big", "reverse_kl")
    out = io.StringIO()
    Console(file=out, width=80).print(token_table(push, TEXTS, scores[push]))
    lines = [line for line in out.getvalue().splitlines() if line.strip()]
    assert max(map(len, lines)) <= 80
    assert len(lines) == 3 + len(TEXTS)
    assert lines[3 + 4].split() == [
        "4", "‘", "6’", "-", "0.50", "-0.40", "-.50…-.30", "0.01", "-0.004",
    ]  # fmt: skip
    assert "FLAT" in lines[3]
