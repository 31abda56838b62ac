"""How much a request may hold, a part of a stream, and how much an error may say."""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from unmask_server.catalog.errors import InvalidArgument

MAX_ITEMS = 10_000
"""Of one list of messages in a request: no rule of the contract allows more."""
MAX_PARTS = 200_000
"""Messages in a request, all told: checking one by the contract's rules takes up to a quarter of a
millisecond, and two bytes make one."""

PART_BYTES = 512 * 1024
"""Messages of a stream that is cut by size have about so many."""

MAX_SAID = 1500
"""Bytes of an error's message, as HTTP/2 headers carry it."""
MAX_TEXT = 300
"""Characters of a text in an error's details."""
MAX_DETAILS = 4000
"""Bytes of an error's details: what does not fit a header of 8 KiB is dropped, code and all."""


def refuse_many(request: Message) -> None:
    """Refuse a request of very many parts, before each of them is looked at.

    Raises:
        InvalidArgument: names the field.

    """
    _count(request, "", MAX_PARTS)


def _count(message: Message, path: str, left: int) -> int:
    for field, value in message.ListFields():
        kind = field.message_type
        if field.type != FieldDescriptor.TYPE_MESSAGE or kind is None:
            continue
        if not field.is_repeated:
            left = _count(value, f"{path}{field.name}.", left - 1)
            continue
        left -= len(value)
        is_map = kind.GetOptions().map_entry
        if len(value) > MAX_ITEMS and not is_map:
            raise InvalidArgument(
                f"{path}{field.name}", f"must contain no more than {MAX_ITEMS} item(s)"
            )
        if left < 0:
            raise InvalidArgument(f"{path}{field.name}", f"more than {MAX_PARTS} parts in all")
        if not is_map and any(inner.message_type is not None for inner in kind.fields):
            for i, part in enumerate(value):
                left = _count(part, f"{path}{field.name}[{i}].", left)
    return left


def fit(status: status_pb2.Status) -> status_pb2.Status:
    """Shorten a status to what gRPC's headers carry. Returns it."""
    status.message = _said(status.message)
    details = [_unpacked(packed) for packed in status.details]
    for detail in details:
        _shorten(detail)
    bad = [one for one in details if isinstance(one, error_details_pb2.BadRequest)]
    for one in bad:
        while one.ByteSize() > MAX_DETAILS - 1000 and len(one.field_violations) > 1:
            del one.field_violations[-1]
    for packed, detail in zip(status.details, details, strict=True):
        packed.Pack(detail)
    return status


def _unpacked(packed: Any) -> Message:
    name = packed.TypeName().rpartition(".")[2]
    detail: Message = getattr(error_details_pb2, name)()
    packed.Unpack(detail)
    return detail


def _said(text: str) -> str:
    # What is no printable ASCII goes as %XX, byte by byte.
    cost = 0
    for i, character in enumerate(text):
        plain = " " <= character <= "~" and character != "%"
        cost += 1 if plain else 3 * len(character.encode(errors="replace"))
        if cost > MAX_SAID:
            return text[:i] + "..."
    return text


def _shorten(message: Message) -> None:
    for field, value in message.ListFields():
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            for key in value:
                if isinstance(value[key], str):
                    value[key] = _cut(value[key])
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            for part in value if field.is_repeated else (value,):
                _shorten(part)
        elif field.type == FieldDescriptor.TYPE_STRING and not field.is_repeated:
            setattr(message, field.name, _cut(value))


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"
