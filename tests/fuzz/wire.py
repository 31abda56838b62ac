"""Requests as bytes that no library writes."""

from __future__ import annotations

import random

from google.protobuf.descriptor import Descriptor
from google.protobuf.descriptor import FieldDescriptor as Field

from tests.fuzz.values import garbled

_LENGTH_DELIMITED = (Field.TYPE_STRING, Field.TYPE_BYTES, Field.TYPE_MESSAGE)


def varint(number: int) -> bytes:
    """A number as protobuf has it."""
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])


def tag(field: int, kind: int) -> bytes:
    """The key of a field with a wire type."""
    return varint(field << 3 | kind)


def filler(size: int) -> bytes:
    """A field that nobody knows, of so many bytes."""
    return tag(777, 2) + varint(size) + bytes(size)


def broken(rng: random.Random, whole: bytes, other: bytes, descriptor: Descriptor) -> bytes:
    """A request with something done to its bytes; `other` is some other request's."""
    fields = descriptor.fields
    number = rng.choice(fields).number if fields else 1
    match rng.randrange(12):
        case 0 | 1 | 2:
            return garbled(rng, whole)
        case 3:
            return whole[: rng.randrange(len(whole) + 1)]
        case 4:
            return whole + other
        case 5:
            # A field that there is not, of each wire type.
            unknown = rng.choice((19, 777, 2**29 - 1))
            body = rng.choice(
                (
                    tag(unknown, 0) + b"\x05",
                    tag(unknown, 5) + bytes(4),
                    tag(unknown, 1) + bytes(8),
                    tag(unknown, 2) + b"\x03abc",
                )
            )
            return body * rng.choice((1, 1000)) + whole
        case 6:
            # A known field of another wire type.
            return whole + tag(number, rng.randrange(8)) + rng.randbytes(rng.randrange(12))
        case 7:
            # A length that is not there, or none at all.
            size = varint(rng.choice((2**31 - 1, 2**31, 2**32, 2**63, len(whole) + 1)))
            return whole + tag(number, 2) + size
        case 8:
            return whole + tag(number, 0) + b"\xff" * rng.choice((9, 10, 11, 100)) + b"\x01"
        case 9:
            # Groups in groups.
            depth = rng.choice((50, 101, 20_000))
            ends = tag(number, 4) * depth if rng.random() < 0.5 else b""
            return whole + tag(number, 3) * depth + ends
        case 10:
            texts = [field.number for field in fields if field.type == Field.TYPE_STRING]
            bad = rng.choice(
                (b"\xff\xfe", b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82")
            )
            at = rng.choice(texts) if texts else number
            return whole + tag(at, 2) + varint(len(bad)) + bad
        case _:
            # Many things of no size: few bytes, much to make of them.
            wide = [field.number for field in fields if field.type in _LENGTH_DELIMITED]
            at = rng.choice(wide) if wide else number
            return whole + (tag(at, 2) + b"\0") * rng.choice((100, 5_000, 200_000))
