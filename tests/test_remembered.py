"""What is remembered is bounded, and what was used last stays."""

from __future__ import annotations

import threading

from hypothesis import given
from hypothesis import strategies as st
from unmask_server.remembered import Remembered, weight_of


def test_what_was_used_last_stays() -> None:
    kept = Remembered[str, int](2)
    kept.put("a", 1)
    kept.put("b", 2)
    assert kept.get("a") == 1
    kept.put("c", 3)
    assert (kept.get("a"), kept.get("b"), kept.get("c")) == (1, None, 3)


def test_what_is_heavier_than_all_is_not_kept() -> None:
    kept = Remembered[str, str](10, len)
    kept.put("small", "abc")
    assert kept.put("large", "x" * 11) == "x" * 11
    assert kept.get("large") is None
    assert kept.get("small") == "abc"
    kept.put("small", "x" * 11)
    assert kept.get("small") is None


@given(st.lists(st.tuples(st.sampled_from("putpopget"), st.integers(0, 9), st.text(max_size=8))))
def test_the_weight_is_that_of_what_is_kept(steps: list[tuple[str, int, str]]) -> None:
    kept = Remembered[int, str](20, len)
    for step, key, value in steps:
        if step == "p":
            kept.put(key, value)
        elif step == "o":
            kept.pop(key)
        else:
            kept.get(key)
        held = [found for k in range(10) if (found := kept.get(k)) is not None]
        assert kept.weight == sum(map(len, held)) <= 20
        assert len(kept) == len(held)


def test_threads_do_not_spoil_it() -> None:
    kept = Remembered[int, int](50)

    def work(start: int) -> None:
        for i in range(2000):
            kept.put(start + i % 97, i)
            kept.get(i)
            kept.pop(i % 13)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(kept) <= 50
    kept.clear()
    assert (len(kept), kept.weight) == (0, 0)


def test_plain_data_is_weighed() -> None:
    assert weight_of({"question": "x" * 1000}) > 1000
    assert weight_of(list(range(1000))) > 30_000
