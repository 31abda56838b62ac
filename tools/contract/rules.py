"""Rules of protovalidate in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def field_rules(rules: Any, enum_names: Mapping[int, str]) -> list[str]:
    """What a field must keep to, in a few words each.

    Args:
        rules: its buf.validate.FieldRules.
        enum_names: of its values, if it is an enum (or a list of them).

    """
    found = ["required"] if rules.required else []
    kind = rules.WhichOneof("type")
    if kind is not None:
        found += _of_kind(kind, getattr(rules, kind), enum_names)
    return found


def _of_kind(kind: str, rules: Any, enum_names: Mapping[int, str]) -> Iterator[str]:
    given = {descriptor.name: value for descriptor, value in rules.ListFields()}
    match kind:
        case "string" | "bytes":
            yield from _size(given, "min_len", "max_len", "character")
            if pattern := given.get("pattern"):
                yield f"matches `{pattern}`"
        case "repeated":
            yield from _size(given, "min_items", "max_items", "item")
            if given.get("unique"):
                yield "all different"
            if "items" in given:
                each = field_rules(given["items"], enum_names)
                yield from (f"each {rule}" for rule in each)
        case "map":
            yield from _size(given, "min_pairs", "max_pairs", "entry", "entries")
        case "enum":
            if 0 in given.get("not_in", ()):
                yield "must be set"
            if "in" in given:
                yield " or ".join(enum_names[number] for number in given["in"] if number)
        case _:
            yield from _bounds(given)


def _size(
    given: Mapping[str, Any], least: str, most: str, one: str, many: str = ""
) -> Iterator[str]:
    many = many or f"{one}s"
    low, high = given.get(least), given.get(most)
    if low is not None and high is not None:
        yield f"{low:,} to {high:,} {many}"
    elif low is not None:
        yield f"at least {low:,} {one if low == 1 else many}"
    elif high is not None:
        yield f"at most {high:,} {many}"


def _bounds(given: Mapping[str, Any]) -> Iterator[str]:
    low = given.get("gte", given.get("gt"))
    high = given.get("lte", given.get("lt"))
    if low is not None and high is not None:
        left, right = "[" if "gte" in given else "(", "]" if "lte" in given else ")"
        yield f"in {left}{low:,g}, {high:,g}{right}"
    elif low is not None:
        yield f"{'≥' if 'gte' in given else '>'} {low:,g}"
    elif high is not None:
        yield f"{'≤' if 'lte' in given else '<'} {high:,g}"
    if given.get("finite"):
        yield "finite"


def message_rules(rules: Any) -> list[str]:
    """What the fields of a message must keep to together: sentences."""
    found = []
    for choice in rules.oneof:
        many = "Exactly one" if choice.required else "At most one"
        found.append(f"{many} of {_names(choice.fields)} is given.")
    for cel in rules.cel:
        field, _, _ = cel.id.rpartition(".")
        found.append(f"`{field}`: {cel.message} (`{cel.id}`: `{cel.expression}`).")
    return found


def _names(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
