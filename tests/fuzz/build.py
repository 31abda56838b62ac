"""Requests from descriptors: plausible ones, wild ones, and valid ones with something changed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import Descriptor
from google.protobuf.descriptor import FieldDescriptor as Field
from google.protobuf.message import Message

from tests.fuzz import values
from tests.fuzz.pool import Pool

DEPTH = 6
"""Of messages that are built; deeper ones are made of bytes."""
_KEYS = ("question", "answer", "hint", "solution", "pattern", "limit", "source", "truncated",
         "ignore_case", "extract", "exact", "last_number")  # fmt: skip


@dataclass(frozen=True)
class Builder:
    """Makes requests of what is known."""

    pool: Pool
    folders: Sequence[Path]
    """Of models, good and bad: paths are these or name nothing."""

    def message(self, rng: random.Random, made: Message, wild: float, depth: int = DEPTH) -> None:
        """Fill a message."""
        for fields in _choices(made.DESCRIPTOR, rng):
            if rng.random() < 0.55:
                self.fill(rng, made, rng.choice(fields), wild, depth)

    def fill(
        self, rng: random.Random, made: Message, field: Field, wild: float, depth: int
    ) -> None:
        """Set a field to something else."""
        made.ClearField(field.name)
        if field.type == Field.TYPE_MESSAGE and depth == 0:
            return
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            self._fill_map(rng, getattr(made, field.name), field, wild)
        elif field.is_repeated:
            for _ in range(_count(rng, wild)):
                if field.type == Field.TYPE_MESSAGE:
                    self.message(rng, getattr(made, field.name).add(), wild, depth - 1)
                else:
                    getattr(made, field.name).append(self.scalar(rng, field, wild))
        elif field.type == Field.TYPE_MESSAGE:
            part = getattr(made, field.name)
            part.SetInParent()
            self.message(rng, part, wild, depth - 1)
        else:
            setattr(made, field.name, self.scalar(rng, field, wild))

    def scalar(self, rng: random.Random, field: Field, wild: float) -> Any:
        """A value for a field that is no message."""
        if field.type == Field.TYPE_STRING:
            return self._text(rng, field, wild)
        if field.type == Field.TYPE_BYTES:
            return values.data(rng)
        if field.type == Field.TYPE_ENUM:
            return values.enum(rng, field, wild)
        return values.number(rng, field, wild)

    def mutate(self, rng: random.Random, made: Message, wild: float) -> None:
        """Change a few fields, anywhere."""
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            places = list(_places(made))
            owner, depth = rng.choice(places)
            field = rng.choice(owner.DESCRIPTOR.fields or made.DESCRIPTOR.fields or [None])
            if field is None:
                return
            if field.containing_type is not owner.DESCRIPTOR:
                owner = made
            self._change(rng, owner, field, wild, depth)

    def _change(
        self, rng: random.Random, owner: Message, field: Field, wild: float, depth: int
    ) -> None:
        action = rng.random()
        if action < 0.12:
            owner.ClearField(field.name)
        elif action < 0.3 and field.is_repeated and len(getattr(owner, field.name)):
            held = getattr(owner, field.name)
            if field.message_type is not None and field.message_type.GetOptions().map_entry:
                self._fill_map(rng, held, field, wild)
                return
            match rng.randrange(3):
                case 0:
                    held.MergeFrom(list(held))
                case 1:
                    del held[rng.randrange(len(held)) :]
                case _:
                    kept = list(held)
                    rng.shuffle(kept)
                    del held[:]
                    held.extend(kept)
        else:
            self.fill(rng, owner, field, wild, min(depth, 2))

    def _fill_map(self, rng: random.Random, held: Any, field: Field, wild: float) -> None:
        key, value = (field.message_type.fields_by_name[name] for name in ("key", "value"))
        for _ in range(_count(rng, wild)):
            known = key.type == Field.TYPE_STRING and rng.random() > wild
            name = rng.choice(_KEYS) if known else self.scalar(rng, key, wild)
            if value.type != Field.TYPE_MESSAGE:
                held[name] = self.scalar(rng, value, wild)

    def _text(self, rng: random.Random, field: Field, wild: float) -> str:
        if "endpoint" in field.name or "url" in field.name:
            return values.endpoint(rng)
        kind = self.pool.kind_of(field)
        if field.name == "model" and rng.random() < 0.6:
            return str(rng.choice(self.folders))
        if kind is not None and rng.random() > wild / 2:
            known = self.pool.any_of(rng, kind)
            if kind in ("page_token", "cursor") and (known is None or rng.random() < 0.6):
                return values.broken_token(rng, known or "")
            if known is not None:
                return known
        if rng.random() < 0.15 and (other := self.pool.foreign(rng)) is not None:
            return other
        return values.text(rng, wild)


def _choices(descriptor: Descriptor, rng: random.Random) -> list[list[Field]]:
    """The fields of a message; those of a oneof together, of which one is chosen."""
    alone = [[field] for field in descriptor.fields if field.containing_oneof is None]
    together = [list(oneof.fields) for oneof in descriptor.oneofs]
    found = alone + together
    rng.shuffle(found)
    return found


def _count(rng: random.Random, wild: float) -> int:
    return rng.choice((0, 1, 2, 9, 33, 300)) if rng.random() < wild / 3 else rng.choice((1, 1, 2))


def _places(made: Message, depth: int = DEPTH) -> list[tuple[Message, int]]:
    """A message and all in it."""
    found = [(made, depth)]
    for field, value in made.ListFields():
        if field.type != Field.TYPE_MESSAGE or field.message_type.GetOptions().map_entry:
            continue
        for part in value if field.is_repeated else (value,):
            found += _places(part, depth - 1)
    return found
