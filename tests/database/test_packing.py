"""What is stored in fewer bytes comes back as it was."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unmask_server.database.packing import (
    HEAD_BYTES,
    UNREADABLE,
    decode_growth,
    decode_tokens,
    encode_growth,
    encode_tokens,
    first_token,
)
from unmask_server.tree.tokens import pack

tokens = st.lists(
    st.one_of(st.integers(0, 300), st.integers(0, 2**17), st.integers(0, 2**31 - 1)), max_size=200
)


@given(tokens)
def test_tokens_come_back_and_the_head_tells_the_first(path: list[int]) -> None:
    packed = pack(path)
    stored = encode_tokens(packed)
    assert decode_tokens(stored) == packed
    assert first_token(stored[:HEAD_BYTES]) == (path[0] if path else None)
    assert len(stored) <= len(packed) + bool(path)


@pytest.mark.parametrize(
    ("vocabulary", "each"), [(200, 1.0), (60_000, 2.0), (150_000, 3.0), (2**31, 4.0)]
)
def test_a_token_takes_as_many_bytes_as_its_vocabulary(vocabulary: int, each: float) -> None:
    rng = random.Random(0)
    for count in (1, 10, 63, 500):
        path = [vocabulary - 1, *(rng.randrange(vocabulary) for _ in range(count - 1))]
        assert len(encode_tokens(pack(path))) <= 1 + each * count


def test_what_repeats_itself_is_deflated() -> None:
    rng = random.Random(0)
    phrase = [rng.randrange(150_000) for _ in range(50)]
    packed = pack(phrase * 8)
    stored = encode_tokens(packed)
    assert len(stored) < len(packed) / 4
    assert decode_tokens(stored) == packed
    assert first_token(stored[:HEAD_BYTES]) == phrase[0]


@given(st.binary(min_size=1, max_size=40))
def test_damaged_bytes_are_read_as_no_tokens(stored: bytes) -> None:
    read = decode_tokens(stored)
    assert read == UNREADABLE or decode_tokens(encode_tokens(read)) == read


@given(st.text(max_size=40).filter(lambda name: "\0" not in name))
def test_names_of_growths_come_back(name: str) -> None:
    assert decode_growth(encode_growth(name)) == name


def test_an_id_of_a_growth_takes_twelve_bytes() -> None:
    name = "gro-0123456789abcdef01234567"
    assert len(encode_growth(name)) == 12
    assert decode_growth(encode_growth(name)) == name
