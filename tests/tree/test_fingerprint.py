"""Names of prefixes, and packed tokens."""

from __future__ import annotations

from hashlib import blake2b

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unmask_server.tree import prefix_fingerprints, seed_fingerprint
from unmask_server.tree.tokens import pack, shared_tokens, unpack

TOKENS = st.lists(st.integers(0, 2**31 - 1))


def test_the_chain_is_the_documented_one() -> None:
    seed = seed_fingerprint("pol-1", "que-1")
    one = blake2b(seed + bytes([7, 0, 0, 0]), digest_size=16).digest()
    two = blake2b(one + bytes([0, 1, 0, 0]), digest_size=16).digest()
    assert prefix_fingerprints(seed, [7, 256]) == [seed, one, two]


def test_seeds_of_different_pairs_differ() -> None:
    pairs = [("a", "bc"), ("ab", "c"), ("abc", ""), ("", "abc"), ("bc", "a")]
    assert len({seed_fingerprint(*pair) for pair in pairs}) == len(pairs)


@given(TOKENS, TOKENS)
def test_equal_names_mean_equal_prefixes(left: list[int], right: list[int]) -> None:
    seed = bytes(16)
    names = zip(prefix_fingerprints(seed, left), prefix_fingerprints(seed, right), strict=False)
    for length, (one, other) in enumerate(names):
        assert (one == other) == (left[:length] == right[:length])


@given(TOKENS)
def test_packing_is_undone_by_unpacking(tokens: list[int]) -> None:
    assert unpack(pack(tokens)) == tuple(tokens)


@given(st.lists(st.integers(0, 1)), st.lists(st.integers(0, 1)))
def test_shared_tokens_are_counted_from_the_start(left: list[int], right: list[int]) -> None:
    expected = 0
    while left[expected : expected + 1] == right[expected : expected + 1] != []:
        expected += 1
    assert shared_tokens(pack(left), pack(right)) == expected


@pytest.mark.parametrize("token", [-1, 2**31, 2**40, 1.5, "1", None])
def test_what_is_no_id_is_named(token: object) -> None:
    with pytest.raises(ValueError, match="token 2 is"):
        pack([1, 2, token])  # type: ignore[list-item]
