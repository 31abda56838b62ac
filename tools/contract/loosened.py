"""Whether the contract's rules were tightened since the last release, which nothing else looks at.

    python -m tools.contract.loosened

A request that keeps to the rules of the release must keep to those of today. Rules of new fields
and messages are free; `buf breaking` compares all but the rules.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorSet

from tools.contract.source import ROOT, Source, read_source, source_of

RELEASED = ROOT / "tools/contract/released.binpb"
_LEAST = {"min_len", "min_bytes", "min_items", "min_pairs", "gte", "gt"}
_MOST = {"max_len", "max_bytes", "max_items", "max_pairs", "lte", "lt"}

Rules = Mapping[str, Mapping[str, Any]]
"""By the path of a field, a message or a choice: its rules by their paths."""


def tightened(before: Rules, now: Rules) -> Iterator[str]:
    """What is refused now that was taken before, in a line each."""
    for place, rules in now.items():
        if place not in before:
            continue
        had = before[place]
        for rule, value in rules.items():
            kind = rule.rpartition(".")[2]
            if rule not in had:
                yield f"{place}: {rule} is new"
            elif had[rule] == value:
                continue
            elif not (
                (kind in _LEAST and value < had[rule]) or (kind in _MOST and value > had[rule])
            ):
                yield f"{place}: {rule} was {had[rule]} and is {value}"


def rules_of(source: Source) -> Rules:
    """The rules of everything in a contract; without rules: an empty entry."""
    found: dict[str, dict[str, Any]] = {}
    for file in source.files:
        for message in file.message_type:
            found[message.name] = dict(_flat(source.rules("message", message.options)))
            for choice in message.oneof_decl:
                path = f"{message.name}.{choice.name}"
                found[path] = dict(_flat(source.rules("oneof", choice.options)))
            for field in message.field:
                path = f"{message.name}.{field.name}"
                found[path] = dict(_flat(source.rules("field", field.options)))
    return found


def _flat(rules: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if rules is None:
        return
    for field, value in rules.ListFields():
        at = f"{path}{field.name}"
        if field.name == "cel":
            yield from ((f"{at}[{one.id}]", one.expression) for one in value)
        elif field.message_type is not None and not field.is_repeated:
            yield from _flat(value, f"{at}.")
        elif field.is_repeated:
            yield at, [str(one) for one in value]
        else:
            yield at, value


def main() -> None:
    """Compare today's with the release."""
    released = source_of(FileDescriptorSet.FromString(RELEASED.read_bytes()))
    if found := list(tightened(rules_of(released), rules_of(read_source()))):
        sys.exit("rules that were tightened since the release:\n" + "\n".join(found))


if __name__ == "__main__":
    main()
