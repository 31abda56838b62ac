"""Each language of docs/clients.md gets an alignment from a real server, by the commands there."""

from __future__ import annotations

import re

import grpc
import pytest
from unmask.v1 import diagnosis_pb2, diagnosis_pb2_grpc

from tests.clients.conftest import Server
from tests.clients.guide import needs, section, shell

pytestmark = pytest.mark.clients

LANGUAGES = {
    "TypeScript": ("node", "npm"),
    "C++": ("cmake", "g++", "protoc", "grpc_cpp_plugin"),
    "Go": ("go", "protoc-gen-go", "protoc-gen-go-grpc"),
    "Python, without our package": ("python3",),
    "A shell": ("jq",),
}
PREFIX = "first, 12 + 8 ="
INTERVAL = re.compile(r"^strong: cosine (\S+) \[(\S+), (\S+)\]$", re.MULTILINE)
GROWING = re.compile(r"^growing: (\d+) of (\d+) rollouts$", re.MULTILINE)


def alignment(server: Server) -> diagnosis_pb2.Alignment:
    """What the server answers our own client."""
    node = diagnosis_pb2.NodeRef(
        prefix=diagnosis_pb2.PrefixNode(policy="student", question="plums", text=PREFIX)
    )
    with grpc.insecure_channel(server.address) as channel:
        answer = diagnosis_pb2_grpc.DiagnosisServiceStub(channel).GetAlignment(
            diagnosis_pb2.GetAlignmentRequest(node=node, teachers=["strong"])
        )
    (found,) = answer.alignments
    return found


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_language_gets_an_alignment_and_understands_errors(
    language: str, server: Server, guarded: Server
) -> None:
    needs(*LANGUAGES[language])
    told = section(language)
    shell(told.build, told.folder)

    said = shell(told.run, told.folder, **server.environment).stdout
    sampled = [(int(done), int(planned)) for done, planned in GROWING.findall(said)]
    assert sampled == sorted(sampled)
    assert sampled[-1] == (400, 400)
    (numbers,) = INTERVAL.findall(said)
    cosine = alignment(server).cosine
    for printed, served in zip(numbers, (cosine.median, cosine.low, cosine.high), strict=True):
        assert float(printed) == pytest.approx(served, abs=6e-4)
    _, refused, mistake = said.partition("refused, as it should be: ")
    assert refused
    assert re.match(r"INVALID_?ARGUMENT: .*temperature", mistake, re.IGNORECASE)
    assert "\n  reason INVALID_FIELD\n" in mistake
    assert "\n  field sampling.temperature: " in mistake

    # The same growth is found, and nothing is sampled.
    again = shell(told.run, told.folder, **server.environment).stdout
    assert INTERVAL.findall(again) == [numbers]
    assert GROWING.findall(again) == [("400", "400")]

    # Over TLS, with a token; the day's rollouts are not enough.
    spent = shell(told.run, told.folder, fails=True, **guarded.environment)
    assert re.match(r"RESOURCE_?EXHAUSTED: ", spent.stderr, re.IGNORECASE), spent.stderr
    assert "\n  reason QUOTA_EXCEEDED\n" in spent.stderr
    assert re.search(r"\n  try again in \d+\S*s\b|\n  try again in \d+ s\b", spent.stderr)

    # Without the token nothing is told.
    stranger = {**guarded.environment, "UNMASK_TOKEN": "unmask_none"}
    denied = shell(told.run, told.folder, fails=True, **stranger)
    assert "UNAUTHENTICATED" in denied.stderr.upper(), denied.stderr


def test_one_call_of_a_shell_by_itself(server: Server) -> None:
    told = section("A shell")
    said = shell(told.others["one call"], told.folder, **server.environment).stdout
    assert said.startswith("{")


def test_a_client_that_would_send_its_token_in_the_clear_does_not(server: Server) -> None:
    told = section("Python, without our package")
    shell(told.build, told.folder)
    said = shell(
        told.run, told.folder, fails=True, **server.environment, UNMASK_TOKEN="unmask_secret"
    )
    assert "in the clear" in said.stderr
