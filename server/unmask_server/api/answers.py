"""Answers that are asked for again, from memory."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Protocol

from unmask_server.nodes.versions import TreeVersions


class Message(Protocol):
    """A protobuf message."""

    def SerializeToString(self, *, deterministic: bool = ...) -> bytes:
        """Its bytes."""
        ...


@dataclass(frozen=True, slots=True)
class _Answer:
    tree_id: int
    version: int
    data: bytes


class AnswerCache:
    """Answers as bytes, by request; an answer stands as long as its tree is at its version.

    What this server records is seen at once; what another server records within
    `versions.MAX_AGE_SECONDS`, or at once where `latest` is asked for.
    """

    def __init__(self, versions: TreeVersions, *, max_bytes: int) -> None:
        self._versions = versions
        self._max = max_bytes
        self._used = 0
        self._answers: OrderedDict[tuple[str, bytes], _Answer] = OrderedDict()

    async def get(self, key: tuple[str, bytes], *, latest: bool) -> bytes | None:
        """The answer, if it still stands."""
        answer = self._answers.get(key)
        if answer is None:
            return None
        version = None if latest else self._versions.current(answer.tree_id)
        if version is None:
            version = await self._versions.latest(answer.tree_id)
        if version != answer.version:
            self._drop(key)
            return None
        if key in self._answers:
            self._answers.move_to_end(key)
        return answer.data

    def put(self, key: tuple[str, bytes], tree_id: int, version: int, data: bytes) -> None:
        """Keep an answer that was computed at `version`."""
        self._versions.note(tree_id, version)
        self._drop(key)
        self._answers[key] = _Answer(tree_id, version, data)
        self._used += _size(key, data)
        while self._used > self._max and self._answers:
            self._drop(next(iter(self._answers)))

    def _drop(self, key: tuple[str, bytes]) -> None:
        if (answer := self._answers.pop(key, None)) is not None:
            self._used -= _size(key, answer.data)


def encode(message: Message | bytes) -> bytes:
    """The bytes of an answer: a message, or one that is encoded already."""
    return message if isinstance(message, bytes) else message.SerializeToString(deterministic=True)


def _size(key: tuple[str, bytes], data: bytes) -> int:
    return len(key[1]) + len(data) + 300
