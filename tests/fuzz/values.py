"""Scalars: what a client would send, and what none should."""

from __future__ import annotations

import base64
import json
import math
import random
from collections.abc import Callable
from typing import Any

from google.protobuf.descriptor import FieldDescriptor as Field

Rng = random.Random

_INTS = (0, 1, 2, 3, 4, 5, 7, 10, 20, 40)
_EDGES = (
    -1,
    0,
    1,
    2**7,
    2**8 - 1,
    2**8,
    999,
    1000,
    1001,
    9999,
    10000,
    10001,
    2**15,
    2**16,
    2**24,
    2**31 - 1,
    -(2**31),
    2**32 - 1,
    2**32,
    2**53,
    2**53 + 1,
    2**62,
    2**63 - 1,
    -(2**63),
    2**64 - 1,
)
_FLOATS = (0.0, 0.05, 0.1, 0.3, 0.5, 0.9, 1.0, 2.0)
_FLOAT_EDGES = (
    math.nan,
    math.inf,
    -math.inf,
    -0.0,
    -1.0,
    5e-324,
    1e-300,
    1e-45,
    1e-9,
    1 - 2**-53,
    1 + 2**-52,
    1e9,
    2.0**31,
    2.0**63,
    3.5e38,
    1e300,
    1.7976931348623157e308,
    -1e308,
)
_RANGES = {
    Field.TYPE_INT32: (-(2**31), 2**31 - 1),
    Field.TYPE_SINT32: (-(2**31), 2**31 - 1),
    Field.TYPE_SFIXED32: (-(2**31), 2**31 - 1),
    Field.TYPE_INT64: (-(2**63), 2**63 - 1),
    Field.TYPE_SINT64: (-(2**63), 2**63 - 1),
    Field.TYPE_SFIXED64: (-(2**63), 2**63 - 1),
    Field.TYPE_UINT32: (0, 2**32 - 1),
    Field.TYPE_FIXED32: (0, 2**32 - 1),
    Field.TYPE_UINT64: (0, 2**64 - 1),
    Field.TYPE_FIXED64: (0, 2**64 - 1),
}
_WORDS = (
    "q 1 2",
    "3",
    "so #### 3",
    "a",
    "{{ question }}",
    "{{ answer }} {{ hint }}",
    "none",
    "answer",
    "1",
    "true",
    "grade",
    "tag",
    "0.5",
)
_TEXTS = (
    "",
    " ",
    "\0",
    "a\0b",
    "\x01\x02\x1b[31m",
    "\u202e\u2066abc\u2069",
    "\ufeff",
    "\ufffd",
    "\uffff",
    "\U0010ffff",
    "e\u0301",
    "\u212b",
    "ﬃ",
    "ß" * 50,
    "İ",
    "👩‍👩‍👧‍👦",
    "\u2028\u2029",
    "\r\n",
    "%s%n",
    "{}",
    "'; DROP TABLE policy; --",
    "\\",
    "\\ud800",
    '"',
    "[" * 2000,
    "{{",
    "{% for a in b %}",
    "{{ 1/0 }}",
    "{{ ''.__class__ }}",
    "{% for i in question %}{{ question }}{% endfor %}",
    "{{ x.y.z }}",
    "{% set a = question ~ question %}{{ a ~ a }}",
    "(" * 500,
    "(a+)+$",
    "(?P<n>a",
    "a{1000}{1000}",
    "[[:alpha:]]*",
    "\\C",
    "x" * 201,
    "x" * 5000,
    "é" * 20_001,
    "1e999",
    "nan",
    "-inf",
    "1/0",
    "9" * 400,
    "\\boxed{" * 300,
    "\\frac{1}{0}",
    "0x1p-1074",
    "१२३",
    "½",
    "pol-",
    "trj-" + "0" * 24,
    "tea-x",
    "../../..",
    "file:///nonexistent",
    "~nobody",
    "con",
    "a/" * 500,
    "\ud7ff",
    "\ue000",
)
_ENDPOINTS = (
    "http://127.0.0.1:1",
    "http://127.0.0.1:2/",
    "http://[::1]:1",
    "http://127.0.0.1:0",
    "https://127.0.0.1:1",
    "127.0.0.1:1",
    "http://",
    "http://127.0.0.1:99999",
    "http://[",
    "ftp://127.0.0.1",
    "http://127.0.0.1:1/../x?y#z",
    "http://user:pw@127.0.0.1:1",
    "javascript:1",
    "http://127.0.0.1:\u0661",
    "http://127.0.0.1:1\r\nX: y",
    "",
)
"""Nothing listens there: the server's host is all that a fuzzer may reach."""
_JSON = (
    b"",
    b"\n\n",
    b"{}",
    b"[]",
    b"null",
    b"\xef\xbb\xbf{}",
    b"\xff\xfe{",
    b"{" * 100,
    b"[" * 20_000,
    b'{"question": "q 1 2", "answer": "3"}',
    b'{"question": "\\ud800", "answer": "3"}',
    b'{"question": "\\u0000", "answer": "3"}',
    b'{"question": "q", "answer": NaN}',
    b'{"question": "q", "answer": 1e999}',
    b'{"question": "q", "answer": {"content": [1, {"text": null}]}}',
    b'{"prompt_tokens": [4, 5, 99999999999999999999], "answer": "3"}',
    b'{"prompt_tokens": [4], "answer": 3}',
    b'{"prompt": [{"role": "user", "content": "q"}], "reward_model": {"ground_truth": "3"}}',
    b'{"question": "q", "answer": "3", "name": "\\ud83d"}',
    b'{"question": "q", "answer": "3", "\\udc00": "x"}',
    b'{"question": "q", "answer": "3", "a\\u0000": "x"}',
    b'{"question": "q", "answer": ' + b"9" * 5000 + b"}",
    b'{"question": "q", "answer": "' + b"9" * 5000 + b'"}',
    b'{"question": {"a": 1}, "answer": [[[[]]]]}',
    b'{"level": "Level 5", "problem": "q", "solution": "\\\\boxed{3}"}',
    b'{"trajectory": "trj-x", "position": 0, "ids": [1], "logprobs": [-0.1]}',
    b'{"question": "one", "prefix": [4], "ids": [5, 6], "logprobs": [-1.0, "-inf"]}',
    b'{"question": "one", "prefix": [4], "ids": [5], "logprobs": [NaN]}',
    b'{"question": "one", "ids": [1e400], "logprobs": [-1]}',
    b'{"ids": "abc"}',
)


def number(rng: Rng, field: Field, wild: float) -> Any:
    """For a numeric or boolean field; at an edge with that probability."""
    if field.type == Field.TYPE_BOOL:
        return rng.random() < 0.5
    if field.type in (Field.TYPE_DOUBLE, Field.TYPE_FLOAT):
        if rng.random() < wild:
            return rng.choice(_FLOAT_EDGES)
        return rng.choice(_FLOATS) if rng.random() < 0.7 else rng.random()
    low, high = _RANGES[field.type]
    found = rng.choice(_EDGES if rng.random() < wild else _INTS)
    return min(max(found, low), high)


def enum(rng: Rng, field: Field, wild: float) -> int:
    """A number of an enum; one that it does not have with that probability."""
    if rng.random() < wild:
        return rng.choice((-1, 99, 1000, 2**31 - 1, -(2**31)))
    return int(rng.choice(field.enum_type.values).number)


def text(rng: Rng, wild: float) -> str:
    """Any text."""
    if rng.random() >= wild:
        return rng.choice(_WORDS)
    if rng.random() < 0.8:
        return rng.choice(_TEXTS)
    return "".join(_character(rng) for _ in range(rng.randrange(30)))


def _character(rng: Rng) -> str:
    code = rng.choice((rng.randrange(0x80), rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)))
    return chr(code)


def endpoint(rng: Rng) -> str:
    """An address at which nothing is."""
    return rng.choice(_ENDPOINTS)


def data(rng: Rng) -> bytes:
    """For a field of bytes: lines of JSON, or nearly."""
    lines = [rng.choice(_JSON) for _ in range(rng.randrange(1, 4))]
    found = b"\n".join(lines)
    return garbled(rng, found) if rng.random() < 0.3 else found


def broken_token(rng: Rng, token: str) -> str:
    """A page token or a cursor, with another inside."""
    inside: Callable[[Any], Any] = rng.choice(
        (
            lambda key: [*key, *key],
            lambda key: key[:1],
            lambda key: {"a": key},
            lambda key: [_odd(rng) for _ in key],
            lambda key: [key[0], *(_odd(rng) for _ in key[1:])],
            lambda key: [_odd(rng), *key[1:]],
        )
    )
    try:
        key = json.loads(base64.urlsafe_b64decode(token))
        changed = json.dumps(inside(key)).encode()
    except (ValueError, TypeError):
        changed = b"[1.0, 1]"
    if rng.random() < 0.1:
        changed = rng.choice((b"[" * 100_000, b"1e999", b'"\\ud800"', b'[1, "\\u0000"]', b"\xff"))
    found = base64.urlsafe_b64encode(changed).decode()
    return found[: rng.randrange(len(found) + 1)] if rng.random() < 0.2 else found


def _odd(rng: Rng) -> Any:
    return rng.choice(
        (
            0,
            -1,
            2**63,
            10**400,
            1e308,
            math.nan,
            math.inf,
            "",
            "\0",
            "\ud800",
            "x",
            None,
            [],
            {},
            True,
            "9" * 30,
            "٣",
            3,
            1,
            [[]],
            [1, "a"],
        )
    )


def garbled(rng: Rng, found: bytes) -> bytes:
    """Bytes with something done to them."""
    changed = bytearray(found)
    for _ in range(rng.randrange(1, 4)):
        place = rng.randrange(len(changed) + 1)
        match rng.randrange(6):
            case 0:
                del changed[place:]
            case 1:
                del changed[place : place + rng.randrange(1, 9)]
            case 2:
                changed[place:place] = rng.randbytes(rng.randrange(1, 9))
            case 3 if place < len(changed):
                changed[place] ^= 1 << rng.randrange(8)
            case 4 if place < len(changed):
                changed[place] = rng.choice((0, 0x7F, 0x80, 0xFF))
            case _:
                changed += changed[place : place + 64]
    return bytes(changed)
