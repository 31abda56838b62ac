"""Texts in requests."""

from __future__ import annotations

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from unmask_server.catalog.errors import InvalidArgument


def refuse_nul(request: Message) -> None:
    """Refuse a NUL character in any text: PostgreSQL keeps none, and no path or name has one.

    Raises:
        InvalidArgument: names the field.

    """
    _search(request, "")


def _search(message: Message, path: str) -> None:
    for field, value in message.ListFields():
        name = f"{path}{field.name}"
        if field.type not in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_MESSAGE):
            continue
        entry = field.message_type
        if entry is not None and entry.GetOptions().map_entry:
            for key in value:
                if "\0" in key or (isinstance(value[key], str) and "\0" in value[key]):
                    raise InvalidArgument(f"{name}[{key!r}]", "has a NUL character")
            continue
        values = value if field.is_repeated else [value]
        for i, item in enumerate(values):
            at = f"{name}[{i}]" if field.is_repeated else name
            if isinstance(item, Message):
                _search(item, f"{at}.")
            elif "\0" in item:
                raise InvalidArgument(at, "has a NUL character")
