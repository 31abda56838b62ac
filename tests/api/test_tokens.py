"""Page tokens and cursors are a client's to forge: they are refused, whatever is in them."""

from __future__ import annotations

import base64
import contextlib
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unmask.v1 import diagnosis_pb2
from unmask_server.api import sharing
from unmask_server.api.options import node_options
from unmask_server.api.paging import decode_page, encode_page
from unmask_server.catalog.errors import InvalidArgument

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=3),
)


def token_of(inside: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(inside).encode()).decode()


@pytest.mark.parametrize(
    "inside",
    [
        [10**400, "x"],
        [math.inf, "x"],
        [1.0, "a\0b"],
        [1.0, "\ud800"],
        [1.0, "é"],
        [1.0],
        {"a": 1},
        1e999,
    ],
)
def test_a_page_token_of_something_else_is_refused(inside: Any) -> None:
    with pytest.raises(InvalidArgument) as caught:
        decode_page(token_of(inside))
    assert caught.value.field == "page_token"


@given(JSON)
def test_any_page_token_is_a_key_or_refused(inside: Any) -> None:
    with contextlib.suppress(InvalidArgument):
        key = decode_page(token_of(inside))
        assert key is not None
        assert math.isfinite(key[0])
        key[1].encode("ascii")


def test_page_tokens_come_back_as_they_went() -> None:
    assert decode_page(encode_page((12.5, "pol-1"))) == (12.5, "pol-1")
    assert decode_page("") is None


WANTED = sharing._Wanted(
    (1, 2, 3, 4), None, ["q1"], [], node_options(diagnosis_pb2.NodeOptions(), "options"), "digest"
)
PHASES = ["verifiers", "questions", "rollouts", "trajectories", "distributions"]


@pytest.mark.parametrize(
    ("phase", "after"),
    [
        (0, [1.5, "ver-1"]),
        (1, [1.5, "que-1"]),
        (1, [128]),
        (2, [3, 77]),
        (3, [0, 2.5, "trj-1"]),
        (4, ["00ff"]),
        (5, []),
    ],
)
def test_a_cursor_goes_on_where_it_was(phase: int, after: list[Any]) -> None:
    assert sharing._position(sharing._cursor(WANTED, phase, after), WANTED, PHASES) == (
        phase,
        after,
    )


@given(st.integers(-1, 7) | JSON, JSON)
def test_a_forged_cursor_is_a_place_or_refused(phase: Any, after: Any) -> None:
    cursor = sharing._cursor(WANTED, phase, after)
    with contextlib.suppress(InvalidArgument):
        found, place = sharing._position(cursor, WANTED, PHASES)
        assert 0 <= found <= len(PHASES)
        assert len(place) <= 3


@pytest.mark.parametrize(
    ("phase", "after"),
    [(0, [1.0]), (0, ["x", 1.0]), (2, [1, 2**70]), (2, ["a", "b"]), (3, [-1, 1.0, "trj"]),
     (4, ["zz"]), (4, [5]), (0, {"a": 1}), (True, []), (5, [1]), (0.0, [])],
)  # fmt: skip
def test_a_forged_cursor_of_another_shape_is_refused(phase: Any, after: Any) -> None:
    with pytest.raises(InvalidArgument):
        sharing._position(sharing._cursor(WANTED, phase, after), WANTED, PHASES)


def test_a_cursor_too_deep_to_be_read_is_refused() -> None:
    deep = base64.urlsafe_b64encode(b"[" * 200_000).decode()
    with pytest.raises(InvalidArgument):
        sharing._position(deep, WANTED, PHASES)
