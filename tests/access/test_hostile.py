"""What is graded and what is sent may be anything, of any size; nobody else is held up by it."""

from __future__ import annotations

import asyncio
import gzip
import json
import resource
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2
from unmask.v1 import catalog_pb2
from unmask_server.catalog.errors import InvalidArgument
from unmask_server.catalog.types import Verifier, VerifierKind
from unmask_server.catalog.verifiers import Grader, check_options
from unmask_server.engines.base import FinishReason

from tests.access.test_calls import outcome
from tests.e2e.conftest import World, serving

STOP = FinishReason.STOP
SERVING = health_pb2.HealthCheckResponse.SERVING
MEGABYTE = 2**20


def verifier(kind: VerifierKind, version: int = 1, **options: str) -> Verifier:
    return Verifier("ver-x", 1, None, kind, version, options, 0.0)


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    grader = Grader()
    yield grader
    grader.close()


HOSTILE = {
    "nested": "(" * MEGABYTE + ")" * MEGABYTE,
    "boxes": r"\boxed{" * 100_000,
    "closed boxes": r"\boxed{" * 100_000 + "}" * 100_000,
    "texts": r"\text{" * 100_000,
    "digits": "1" * MEGABYTE,
    "thousands": "1," + "111," * 250_000 + "x",
    "spaces": "1" + " " * MEGABYTE + "1" + " " * MEGABYTE + "/",
    "mixed": "1 " * (MEGABYTE // 2) + "/",
    "fractions": "1/" * (MEGABYTE // 2),
    "signs": "-$" * (MEGABYTE // 2) + "1e",
    "points": "." * MEGABYTE + "1",
    "exponents": "1e99" * (MEGABYTE // 4),
    "power": "9**9**9**9",
    "latex power": r"\boxed{9^{9^{9^{9}}}}",
    "latex fractions": r"\frac{" * 50_000 + "1" + "}{1}" * 50_000,
    "hashes": "####" * (MEGABYTE // 4),
    "letters": "a" * MEGABYTE,
    "bytes": "\u202e\ufffd\U0010ffff" * (MEGABYTE // 8),
    "pipes": "a|" * (MEGABYTE // 2),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize(
    "kind", [VerifierKind.LAST_NUMBER, VerifierKind.HASH_ANSWER, VerifierKind.BOXED,
             VerifierKind.EXACT],
)  # fmt: skip
def test_answers_of_any_kind_are_graded_in_passing(
    grader: Grader, kind: VerifierKind, name: str
) -> None:
    text = HOSTILE[name]
    (reward,) = grader.grade_many(verifier(kind), [(text, "7", STOP)])
    assert reward == 0.0
    (reward,) = grader.grade_many(verifier(kind), [("7" if kind is VerifierKind.EXACT else
        r"\boxed{7} #### 7", "7", STOP)])  # fmt: skip
    assert reward == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_answers_of_any_kind_are_compared_as_mathematics_or_given_up(
    grader: Grader, name: str
) -> None:
    math = verifier(VerifierKind.MATH_VERIFY, 90)
    rewards = grader.grade_many(math, [(HOSTILE[name], "7", STOP), (r"\boxed{7}", "7", STOP)])
    assert rewards == [0.0, 1.0]


@pytest.mark.parametrize(
    "pattern",
    [
        r"(a+)+$",
        r"(a|a)*b",
        r"(a|aa)+$",
        r"^(([a-z])+.)+[A-Z]([a-z])+$",
        r"(.*)(.*)(.*)(.*)(.*)(.*)(.*)(.*)(.*)x",
        r"(?:a?){30}a{30}$",
    ],
)
def test_patterns_that_hang_other_engines_take_linear_time(grader: Grader, pattern: str) -> None:
    for kind in (VerifierKind.REGEX, VerifierKind.FORMAT):
        check_options(kind, {"pattern": pattern})
        items = [("a" * 200_000 + "!", "7", STOP)]
        grader.grade_many(verifier(kind, pattern=pattern), items)


@pytest.mark.parametrize(
    "pattern", [r"(a)\1", r"(?=a)", r"a{1000000}", r"((a{100}){100}){100}", "(" * 5000, r"\C" * 3]
)
def test_patterns_that_the_engine_cannot_bound_are_refused(pattern: str) -> None:
    if pattern.startswith(r"\C"):
        pattern += "["
    with pytest.raises(InvalidArgument, match="no RE2 pattern"):
        check_options(VerifierKind.REGEX, {"pattern": pattern})


@pytest.fixture
async def small(tmp_path: Path) -> AsyncIterator[World]:
    """A server that takes messages of a MiB."""
    async with serving(f"sqlite:///{tmp_path}/unmask.db", tmp_path, max_message_mib=1) as world:
        yield world


REGISTER = "/unmask.v1.CatalogService/RegisterQuestions"


SEND = """
import sys, grpc
address, method, size, how = sys.argv[1:]
with grpc.insecure_channel(address, options=[("grpc.max_send_message_length", -1)]) as channel:
    try:
        message, how = bytes(int(size)), grpc.Compression[how]
        channel.unary_unary(method)(message, compression=how, timeout=100)
        print("OK")
    except grpc.RpcError as error:
        print(error.code().name)
"""


@pytest.mark.parametrize("how", ["Gzip", "Deflate", "NoCompression"])
async def test_a_message_that_unpacks_to_too_much_is_never_unpacked(small: World, how: str) -> None:
    """200 MiB of zeros are 200 KiB on the wire."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # In a process of its own, whose memory is not the server's.
    sender = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SEND, small.address, REGISTER, str(200 * MEGABYTE), how,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    said, _ = await sender.communicate()
    assert said.decode().strip() == "RESOURCE_EXHAUSTED"
    if how != "NoCompression":
        # Kilobytes; unpacked it would be 200 MiB more.
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024
    assert (await outcome(small, "/grpc.health.v1.Health/Check"))[0] is grpc.StatusCode.OK


async def test_a_message_may_be_compressed(small: World) -> None:
    call = small.stubs.channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    answer = await call(b"", compression=grpc.Compression.Gzip)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize(
    "jsonl",
    [
        b'{"question": ' + b"[" * 200_000,
        b'{"question": "q", "answer": ' + b"9" * 500_000 + b"}",
        b'{"question": "q", "answer": 1e999999999}',
        b'{"question": "q", "answer": NaN}',
        b"\x00" * 1000,
        b"\xff\xfe" * 1000,
        gzip.compress(b'{"question": "q", "answer": "1"}', mtime=0),
        b"\n" * 500_000,
        json.dumps({"question": "q", "answer": {"a": [{"b": "c" * 1000}] * 500}}).encode(),
    ],
)
async def test_questions_of_any_kind_are_taken_or_refused(small: World, jsonl: bytes) -> None:
    sent = catalog_pb2.RegisterQuestionsRequest(jsonl=jsonl).SerializeToString()
    told = await outcome(small, REGISTER, sent=sent)
    assert told in ((grpc.StatusCode.OK, ""), (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"))
