"""What a fuzzer knows of a server: ids, names and page tokens, learned from its answers."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

KEPT = 400
"""Values of a kind; then new ones take the place of old ones."""
_TOKENS = ("page_token", "cursor")


class NotANumberError(Exception):
    """An answer has a NaN, or an infinity, where a number was due."""


class Pool:
    """Values by kind: `policy`, `trajectory`, …, `page_token`, `cursor`."""

    def __init__(self, hidden: Callable[[str], bool] = lambda value: False) -> None:
        """Values that are `hidden` are never learned."""
        self._values: dict[str, list[str]] = {}
        self._seen: set[tuple[str, str]] = set()
        self._hidden = hidden

    def add(self, kind: str, value: str) -> None:
        """Learn one."""
        if not value or (kind, value) in self._seen or self._hidden(value):
            return
        values = self._values.setdefault(kind, [])
        self._seen.add((kind, value))
        if len(values) < KEPT:
            values.append(value)
            return
        place = hash(value) % KEPT
        self._seen.discard((kind, values[place]))
        values[place] = value

    def kinds(self) -> list[str]:
        return sorted(self._values)

    def any_of(self, rng: random.Random, kind: str) -> str | None:
        """One of a kind; None if there is none."""
        values = self._values.get(kind)
        return rng.choice(values) if values else None

    def foreign(self, rng: random.Random) -> str | None:
        """One of any kind."""
        return self.any_of(rng, rng.choice(self.kinds())) if self._values else None

    def kind_of(self, field: FieldDescriptor) -> str | None:
        """What kind of value a text field of a request takes, by its name."""
        name = field.name
        for kind in (*_TOKENS, *sorted(self._values, key=len, reverse=True)):
            if kind in name or (kind.endswith("y") and f"{kind[:-1]}ies" in name):
                return kind
        return None

    def learn(self, message: Message) -> None:
        """Take in what an answer names.

        Raises:
            NotANumberError: one of its numbers is none.

        """
        kind = message.DESCRIPTOR.name.lower()
        if any(self._hidden(v) for _, v in message.ListFields() if isinstance(v, str)):
            return
        for field, value in message.ListFields():
            if field.type in (FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT):
                for number in value if field.is_repeated else (value,):
                    if not math.isfinite(number):
                        raise NotANumberError(f"{field.full_name} is {number}")
            elif field.type == FieldDescriptor.TYPE_STRING:
                self._learn_text(kind, field, value)
            elif field.type == FieldDescriptor.TYPE_MESSAGE:
                if field.message_type.GetOptions().map_entry:
                    continue
                for part in value if field.is_repeated else (value,):
                    self.learn(part)

    def _learn_text(self, kind: str, field: FieldDescriptor, value: object) -> None:
        if field.is_repeated:
            return
        assert isinstance(value, str)
        if field.name in ("id", "name"):
            self.add(kind, value)
        elif field.name.endswith("_id"):
            self.add(field.name.removesuffix("_id"), value)
        else:
            for token in _TOKENS:
                if field.name.endswith(token):
                    self.add(token, value)
