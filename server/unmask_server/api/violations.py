"""Broken rules of the contract, as fields and words for whoever sent the request."""

from __future__ import annotations

import re
from typing import Any

import protovalidate
from google.protobuf.descriptor import FieldDescriptor, OneofDescriptor

from unmask_server.catalog.errors import FieldViolation

_ONE_OF = re.compile(r"(?:only )?one of (\w+)")


def field_violation(message: Any, found: protovalidate.Violation) -> FieldViolation:
    """What a violation says of which field.

    A rule over several fields of a message is told of one of them: of the first one of a choice,
    and else of the one that stands before the last dot of the rule's id, e.g. `beta.jsd_only`.

    Args:
        message: the request's descriptor.
        found: in it.

    """
    told = found.proto
    path, at = _located(message, told)
    rule, text = told.rule_id, told.message
    match rule.split("."):
        case ["required"] if isinstance(at, OneofDescriptor):
            path = path.rpartition(".")[0] or path
            text = f"give one of {', '.join(field.name for field in at.fields)}"
        case ["required"]:
            text = "is required"
        case ["message", "oneof"]:
            path = _below(path, _ONE_OF.match(text).group(1))  # type: ignore[union-attr]
        case ["enum", *_] if isinstance(at, FieldDescriptor):
            text = _enum(at, found)
        case ["string", "min_len"] if not found.field_value:
            text = "is empty"
        case _ if not told.rule:
            path = _below(path, rule.rpartition(".")[0])
        case _ if isinstance(found.field_value, int | float):
            text = f"{text}, not {found.field_value:g}"
    return FieldViolation(path, text, rule.upper().replace(".", "_"))


def _enum(field: FieldDescriptor, found: protovalidate.Violation) -> str:
    """Which values there are: those of the rule, else all but UNSPECIFIED."""
    values: Any = field.enum_type.values_by_number  # type: ignore[union-attr]
    allowed = sorted(values)[1:]
    if found.proto.rule_id == "enum.in":
        allowed = [number for number in found.rule_value if number]
    names = ", ".join(values[number].name for number in allowed)
    return f"{found.field_value} is none of {names}" if found.field_value else f"say which: {names}"


def _below(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _located(message: Any, violation: Any) -> tuple[str, FieldDescriptor | OneofDescriptor | None]:
    """The path, as in `targets[2].node.prefix` and `options['pattern']`, and what is there."""
    path, at, inside = "", None, message
    for element in violation.field.elements if violation.field else ():
        key = element.subscript
        name = element.field_name
        path = _below(path, name if key is None else f"{name}[{key.value!r}]")
        at = inside.fields_by_name.get(name) or inside.oneofs_by_name.get(name)
        if isinstance(at, FieldDescriptor) and at.message_type is not None:
            inside = at.message_type
    return path, at
