"""Rules on requests may be loosened, never tightened."""

from __future__ import annotations

from tools.contract.loosened import tightened

RELEASED = {
    "Ask": {},
    "Ask.name": {"string.max_len": 200},
    "Ask.count": {"int32.gte": 1, "int32.lte": 10},
    "Ask.kind": {"enum.defined_only": True},
}


def changed(place: str, **rules: object) -> list[str]:
    now = {**RELEASED, place: {rule.replace("__", "."): value for rule, value in rules.items()}}
    return list(tightened(RELEASED, now))


def test_the_same_is_no_change() -> None:
    assert not list(tightened(RELEASED, RELEASED))


def test_more_may_be_allowed() -> None:
    assert not changed("Ask.name", string__max_len=300)
    assert not changed("Ask.count", int32__gte=0, int32__lte=10)
    assert not changed("Ask.kind")
    assert not changed("Ask.count", int32__gte=1)


def test_less_may_not() -> None:
    assert changed("Ask.name", string__max_len=100) == [
        "Ask.name: string.max_len was 200 and is 100"
    ]
    assert changed("Ask.count", int32__gte=2, int32__lte=10)
    assert changed("Ask.name", string__max_len=200, string__min_len=1) == [
        "Ask.name: string.min_len is new"
    ]
    assert changed("Ask", cel="this.name != ''")


def test_what_is_new_has_the_rules_that_it_has() -> None:
    assert not changed("Ask.other", string__min_len=1)
