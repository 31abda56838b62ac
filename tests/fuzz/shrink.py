"""The smallest request that is still answered as it should not be."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from google.protobuf.descriptor import FieldDescriptor as Field
from google.protobuf.message import DecodeError, Message

from tests.fuzz.calls import Answer, Sent, problem, send
from tests.fuzz.drive import Found
from tests.fuzz.rpcs import Rpc
from tests.fuzz.server import Watched

TRIES = 200
_NUMBERS = re.compile(r"\d+|'[^']*'|\"[^\"]*\"")


@dataclass(frozen=True)
class Case:
    """A bad answer, with the smallest request that was found to give it."""

    sent: Sent
    problem: str
    index: int
    again: bool
    """Whether it came again when it was sent again."""
    log: str
    """What the server's log says of it."""

    @property
    def kind(self) -> str:
        """The same for what is likely the same mistake."""
        last = self.log.strip().splitlines()[-1:] or [self.problem]
        places = re.findall(r'unmask_server/(\S+)", line (\d+)', self.log)[-1:]
        return f"{_NUMBERS.sub('_', last[0])[:120]} {places}"


async def examine(server: Watched, rpcs: dict[str, Rpc], found: list[Found]) -> list[Case]:
    """Send each bad request again, alone; of each kind make one small. One case a kind."""
    cases: dict[str, Case] = {}
    for one in found:
        rpc = rpcs[one.sent.path]
        case = await _again(server, rpc, one)
        if case.kind not in cases:
            cases[case.kind] = await _shrunk(server, rpc, case) if case.again else case
    return list(cases.values())


async def _again(server: Watched, rpc: Rpc, found: Found) -> Case:
    sent = replace(found.sent, timeout=None, cancel_after=None)
    wrong, log = await attempt(server, rpc, sent)
    if wrong:
        return Case(sent, wrong, found.index, True, log)
    return Case(found.sent, found.problem, found.index, False, "")


async def attempt(server: Watched, rpc: Rpc, sent: Sent) -> tuple[str, str]:
    """What is wrong with the answer, and what the log says of it."""
    start = server.log.stat().st_size
    answer: Answer = await send(server.channel, rpc, sent)
    wrong = problem(rpc, sent, answer)
    if not wrong:
        return "", ""
    said = server.complaints(start)
    return wrong, said[-1] if said else ""


async def _shrunk(server: Watched, rpc: Rpc, case: Case) -> Case:
    tries = 0
    smaller = True
    while smaller and tries < TRIES:
        smaller = False
        for data in _smaller(rpc, case.sent.data):
            tries += 1
            if tries > TRIES:
                break
            sent = replace(case.sent, data=data, metadata=(), compression="none")
            wrong, log = await attempt(server, rpc, sent)
            found = Case(sent, wrong, case.index, True, log)
            if wrong and found.kind == case.kind:
                case, smaller = found, True
                break
    return case


def _smaller(rpc: Rpc, data: bytes) -> Iterator[bytes]:
    """Requests with something less."""
    message = rpc.new_request()
    try:
        message.ParseFromString(data)
    except DecodeError:
        step = len(data) // 2
        while step:
            for start in range(0, len(data), step):
                yield data[:start] + data[start + step :]
            step //= 2
        return
    message.DiscardUnknownFields()
    yield from (made for made in _without(message, message) if len(made) < len(data))


def _without(whole: Message, part: Message) -> Iterator[bytes]:
    """The whole, with something less in a part of it. Parts are as they were afterwards."""
    for field, value in list(part.ListFields()):
        kept = type(part)()
        kept.CopyFrom(part)
        part.ClearField(field.name)
        yield whole.SerializeToString()
        part.CopyFrom(kept)
        if field.is_repeated and len(value) > 1 and not _is_map(field):
            for half in (slice(None, len(value) // 2), slice(len(value) // 2, None)):
                held = getattr(part, field.name)
                some = list(getattr(kept, field.name))[half]
                del held[:]
                held.extend(some)
                yield whole.SerializeToString()
                part.CopyFrom(kept)
        elif field.type in (Field.TYPE_STRING, Field.TYPE_BYTES) and not field.is_repeated:
            for half in (value[: len(value) // 2], value[len(value) // 2 :]):
                setattr(part, field.name, half)
                yield whole.SerializeToString()
                part.CopyFrom(kept)
        if field.type == Field.TYPE_MESSAGE and not _is_map(field):
            for i in range(len(value)) if field.is_repeated else (None,):
                held = getattr(part, field.name)
                yield from _without(whole, held if i is None else held[i])


def _is_map(field: Field) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry
