"""Values in memory up to a limit, so that no client can fill it by asking about new things."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


def _one(_: Any) -> int:
    return 1


class Remembered(Generic[Key, Value]):
    """The values used last, as many as weigh no more than a limit together. Callable from threads.

    A value that weighs more than the limit alone is not kept.
    """

    def __init__(self, limit: int, weigh: Callable[[Value], int] = _one) -> None:
        self._limit = limit
        self._weigh = weigh
        self._lock = threading.Lock()
        self._values: OrderedDict[Key, tuple[Value, int]] = OrderedDict()
        self.weight = 0
        """Of what is kept now."""

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Key) -> Value | None:
        """The value, if it is kept; it counts as used."""
        with self._lock:
            found = self._values.get(key)
            if found is None:
                return None
            self._values.move_to_end(key)
            return found[0]

    def put(self, key: Key, value: Value) -> Value:
        """Keep a value; returns it."""
        weight = self._weigh(value)
        with self._lock:
            self._drop(key)
            if weight <= self._limit:
                self._values[key] = (value, weight)
                self.weight += weight
            while self.weight > self._limit:
                self._drop(next(iter(self._values)))
        return value

    def pop(self, key: Key) -> None:
        """Forget one, if it is there."""
        with self._lock:
            self._drop(key)

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._values.clear()
            self.weight = 0

    def _drop(self, key: Key) -> None:
        if (dropped := self._values.pop(key, None)) is not None:
            self.weight -= dropped[1]


def weight_of(value: Any) -> int:
    """Roughly what plain data takes in memory, in bytes: texts, numbers, and what holds them."""
    if isinstance(value, str | bytes):
        return 60 + len(value)
    if isinstance(value, dict):
        return 80 + sum(weight_of(k) + weight_of(v) for k, v in value.items())
    if isinstance(value, list | tuple):
        return 60 + sum(8 + weight_of(part) for part in value)
    return 30
