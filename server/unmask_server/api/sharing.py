"""CacheService.ExportCache."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import json
import math
import re
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from google.protobuf.message import Message
from unmask.v1 import sharing_pb2 as pb

from unmask_server.api import catalog_messages
from unmask_server.api import sharing_messages as messages
from unmask_server.api.options import Options, node_options
from unmask_server.api.sizes import PART_BYTES
from unmask_server.catalog import Catalog
from unmask_server.catalog.errors import InvalidArgument
from unmask_server.catalog.types import Trajectory
from unmask_server.tree import ShareReader, StoredRollout, TreeRef

AT_ONCE = 128
"""Records read at once."""

Estimates = Callable[[str, Sequence[str], Options], AsyncIterator[pb.NodeEstimate]]
"""What is known at every token of a trajectory, by its id, the teachers and the options."""

_DEFAULT = (
    pb.EXPORT_KIND_ROLLOUTS,
    pb.EXPORT_KIND_TRAJECTORIES,
    pb.EXPORT_KIND_DISTRIBUTIONS,
)
_PHASES = ("verifiers", "policies", "questions", "teachers")
_OF_KIND = {
    pb.EXPORT_KIND_ROLLOUTS: "rollouts",
    pb.EXPORT_KIND_TRAJECTORIES: "trajectories",
    pb.EXPORT_KIND_DISTRIBUTIONS: "distributions",
    pb.EXPORT_KIND_ESTIMATES: "estimates",
}

After = list[Any]
"""Where a phase goes on; empty at its start."""
Part = tuple[pb.CacheRecords, After]


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What an export is of."""

    kinds: tuple[pb.ExportKind.ValueType, ...]
    policy_id: str | None
    question_ids: list[str] | None
    teacher_ids: list[str]
    options: Options
    digest: str
    """Of the request but its cursor: cursors of another one are refused."""


class Exporter:
    """Reads a cache out, phase by phase."""

    def __init__(self, catalog: Catalog, reader: ShareReader, estimates: Estimates) -> None:
        self._catalog = catalog
        self._reader = reader
        self._estimates = estimates
        self._readers = {
            "verifiers": self._verifiers,
            "policies": self._policies,
            "questions": self._questions,
            "teachers": self._teachers,
            "rollouts": self._rollouts,
            "trajectories": self._trajectories,
            "distributions": self._distributions,
            "estimates": self._nodes,
        }

    async def export(self, request: pb.ExportCacheRequest) -> AsyncIterator[pb.ExportCacheResponse]:
        """The parts behind the request's cursor."""
        wanted = await asyncio.to_thread(self._wanted, request)
        phases = [*_PHASES, *(_OF_KIND[kind] for kind in sorted(wanted.kinds))]
        number, after = _position(request.cursor, wanted, phases)
        for i in range(number, len(phases)):
            parts = self._readers[phases[i]](wanted, after if i == number else [])
            async for records, place in parts:
                yield pb.ExportCacheResponse(records=records, cursor=_cursor(wanted, i, place))
        yield pb.ExportCacheResponse(cursor=_cursor(wanted, len(phases), []))

    def _wanted(self, request: pb.ExportCacheRequest) -> _Wanted:
        kinds = tuple(request.kinds) or _DEFAULT
        policy = self._catalog.get_policy(request.policy).id if request.policy else None
        questions = [self._catalog.get_question(name).id for name in request.questions]
        if len(set(questions)) < len(questions):
            raise InvalidArgument("questions", "a question is named twice")
        teachers = [self._catalog.get_teacher(name).id for name in request.teachers]
        options = node_options(request.options, "options")
        told = request.options.SerializeToString(deterministic=True).hex()
        said = [sorted(kinds), policy, questions, teachers, told]
        digest = hashlib.blake2b(json.dumps(said).encode(), digest_size=8).hexdigest()
        return _Wanted(kinds, policy, questions or None, teachers, options, digest)

    # ------------------------------------------------------------------------------ the catalog

    async def _verifiers(self, wanted: _Wanted, after: After) -> AsyncIterator[Part]:
        async for found, place in _pages(
            self._catalog.list_verifiers, after, catalog_messages.verifier
        ):
            yield pb.CacheRecords(verifiers=[made for _, made in found]), place

    async def _policies(self, wanted: _Wanted, after: After) -> AsyncIterator[Part]:
        async for found, place in _pages(
            self._catalog.list_policies, after, messages.shared_policy
        ):
            chosen = [made for p, made in found if wanted.policy_id in (None, p.id)]
            yield pb.CacheRecords(policies=chosen), place

    async def _questions(self, wanted: _Wanted, after: After) -> AsyncIterator[Part]:
        if wanted.question_ids is None:
            async for found, place in _pages(
                self._catalog.list_questions, after, catalog_messages.question
            ):
                yield pb.CacheRecords(questions=[made for _, made in found]), place
            return
        first = after[0] if after else 0
        for i in range(first, len(wanted.question_ids), AT_ONCE):
            ids = wanted.question_ids[i : i + AT_ONCE]
            chosen = [await asyncio.to_thread(self._catalog.get_question, id_) for id_ in ids]
            for chunk in _chunks(
                list(enumerate(map(catalog_messages.question, chosen), start=i + 1)),
                lambda pair: pair[1].ByteSize(),
            ):
                yield pb.CacheRecords(questions=[made for _, made in chunk]), [chunk[-1][0]]

    async def _teachers(self, wanted: _Wanted, after: After) -> AsyncIterator[Part]:
        if pb.EXPORT_KIND_DISTRIBUTIONS not in wanted.kinds:
            return
        async for found, place in _pages(
            self._catalog.list_teachers, after, messages.shared_teacher
        ):
            yield pb.CacheRecords(teachers=[made for _, made in found]), place

    # ------------------------------------------------------------------------------ the contents

    async def _rollouts(self, wanted: _Wanted, after: After) -> AsyncIterator[Part]:
        tree_id, last = after or (0, 0)
        while trees := await asyncio.to_thread(
            # The tree in which it was cut off comes again.
            self._reader.trees,
            wanted.policy_id,
            wanted.question_ids,
            tree_id - 1 if last else tree_id,
            AT_ONCE,
        ):
            for tree in trees:
                tree_id = tree.id
                while found := await asyncio.to_thread(
                    self._reader.rollouts, tree_id, last, AT_ONCE
                ):
                    for chunk in _chunks(found, lambda one: 4 * len(one.tokens) + 100):
                        last = chunk[-1].id
                        told = await asyncio.to_thread(self._told, chunk, tree)
                        yield pb.CacheRecords(rollouts=told), [tree_id, last]
                last = 0

    def _told(self, found: Sequence[StoredRollout], tree: TreeRef) -> list[pb.SharedRollout]:
        key = self._catalog.verifier_by_key
        return [messages.shared_rollout(one, tree, key) for one in found]

    async def _trajectories(self, wanted: _Wanted, after: After) -> AsyncIterator[Part]:
        async for found, place in self._trajectory_pages(wanted, after):
            told = [messages.shared_trajectory(one, self._catalog.verifier_by_key) for one in found]
            yield pb.CacheRecords(trajectories=told), place

    async def _distributions(self, wanted: _Wanted, after: After) -> AsyncIterator[Part]:
        last = bytes.fromhex(after[0]) if after else b""
        while found := await asyncio.to_thread(self._reader.distributions, last, AT_ONCE):
            for chunk in _chunks(found, lambda pair: 8 * len(pair[1].ids) + 50):
                last = chunk[-1][0]
                told = [messages.shared_distribution(*pair) for pair in chunk]
                yield pb.CacheRecords(distributions=told), [last.hex()]

    async def _nodes(self, wanted: _Wanted, after: After) -> AsyncIterator[Part]:
        before = after
        async for found, place in self._trajectory_pages(wanted, after, 1):
            nodes = [node for one in found async for node in self._of(one, wanted)]
            chunks = list(_chunks(nodes, lambda node: node.ByteSize()))
            for i, chunk in enumerate(chunks):
                # Cut off in between, the trajectory comes again as a whole.
                last = i == len(chunks) - 1
                yield pb.CacheRecords(estimates=chunk), place if last else before
            before = place

    def _of(self, trajectory: Trajectory, wanted: _Wanted) -> AsyncIterator[pb.NodeEstimate]:
        return self._estimates(trajectory.id, wanted.teacher_ids, wanted.options)

    async def _trajectory_pages(
        self, wanted: _Wanted, after: After, size: int = AT_ONCE
    ) -> AsyncIterator[tuple[list[Trajectory], After]]:
        questions: Sequence[str | None] = wanted.question_ids or [None]
        first, page = (after[0], tuple(after[1:])) if after else (0, None)
        for i in range(first, len(questions)):
            read = partial(
                self._catalog.trajectories.page,
                policy_id=wanted.policy_id,
                question_id=questions[i],
                correct=None,
                size=size,
            )
            while found := await asyncio.to_thread(read, after=page):
                for chunk in _chunks(found, lambda one: 4 * len(one.tokens) + 100):
                    page = (chunk[-1].created_at, chunk[-1].id)
                    yield chunk, [i, *page]
            page = None


def _chunks(found: Sequence[Any], size: Callable[[Any], int]) -> Iterable[list[Any]]:
    """Runs of about `PART_BYTES`."""
    chunk: list[Any] = []
    total = 0
    for one in found:
        if chunk and total + size(one) > PART_BYTES:
            yield chunk
            chunk, total = [], 0
        chunk.append(one)
        total += size(one)
    if chunk:
        yield chunk


async def _pages(
    page: Callable[[int, tuple[float, str] | None], list[Any]],
    after: After,
    message: Callable[[Any], Message],
) -> AsyncIterator[tuple[list[tuple[Any, Any]], After]]:
    """Runs of things and their messages, and where they end."""
    place = (float(after[0]), str(after[1])) if after else None
    while found := await asyncio.to_thread(page, AT_ONCE, place):
        made = [(one, message(one)) for one in found]
        for chunk in _chunks(made, lambda pair: pair[1].ByteSize()):
            last, _ = chunk[-1]
            place = (last.created_at, last.id)
            yield chunk, list(place)


def _cursor(wanted: _Wanted, phase: int, after: After) -> str:
    text = json.dumps([_mark(wanted, phase, after), phase, after])
    return base64.urlsafe_b64encode(text.encode()).decode()


def _position(cursor: str, wanted: _Wanted, phases: Sequence[str]) -> tuple[int, After]:
    if not cursor:
        return 0, []
    try:
        mark, phase, after = json.loads(base64.urlsafe_b64decode(cursor))
        good = mark == _mark(wanted, phase, after) and _is_place(phase, after, phases)
    except (ValueError, TypeError, RecursionError, binascii.Error):
        good = False
    if not good:
        raise InvalidArgument("cursor", "is of another request, or none")
    return phase, after


def _is_place(phase: Any, after: Any, phases: Sequence[str]) -> bool:
    """Whether a phase may go on there: a mark can be computed by anybody."""
    if type(phase) is not int or not 0 <= phase <= len(phases) or not isinstance(after, list):
        return False
    if not after:
        return True
    shapes = _PLACES[phases[phase]] if phase < len(phases) else ()
    return any(
        len(after) == len(shape) and all(fits(one) for fits, one in zip(shape, after, strict=True))
        for shape in shapes
    )


def _is_index(one: Any) -> bool:
    return type(one) is int and 0 <= one < 2**62


def _is_time(one: Any) -> bool:
    return type(one) is float and math.isfinite(one)


def _is_id(one: Any) -> bool:
    return isinstance(one, str) and one.isascii() and one.isprintable()


def _is_key(one: Any) -> bool:
    return isinstance(one, str) and re.fullmatch(r"(?:[0-9a-f]{2})*", one) is not None


_LISTED = ((_is_time, _is_id),)
_OF_TRAJECTORIES = ((_is_index, _is_time, _is_id),)
_PLACES: dict[str, tuple[tuple[Callable[[Any], bool], ...], ...]] = {
    "verifiers": _LISTED,
    "policies": _LISTED,
    "questions": (*_LISTED, (_is_index,)),
    "teachers": _LISTED,
    "rollouts": ((_is_index, _is_index),),
    "trajectories": _OF_TRAJECTORIES,
    "distributions": ((_is_key,),),
    "estimates": _OF_TRAJECTORIES,
}


def _mark(wanted: _Wanted, phase: int, after: After) -> str:
    """Tells cursors of this request from those of others, and from damaged ones."""
    said = json.dumps([wanted.digest, phase, after]).encode()
    return hashlib.blake2b(said, digest_size=8).hexdigest()
