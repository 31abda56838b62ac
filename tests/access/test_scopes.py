"""Every call needs a scope, and the table is whole."""

from __future__ import annotations

import importlib
import pkgutil

import pytest
import unmask.v1
from google.protobuf.descriptor import ServiceDescriptor
from unmask_server.access.principals import Scope
from unmask_server.api.scopes import SCOPES, needed

SERVICES: list[ServiceDescriptor] = [
    service
    for module in pkgutil.iter_modules(unmask.v1.__path__)
    if module.name.endswith("_pb2")
    for service in importlib.import_module(
        f"unmask.v1.{module.name}"
    ).DESCRIPTOR.services_by_name.values()
]


def test_every_call_of_the_contract_needs_a_scope_and_no_other_is_in_the_table() -> None:
    assert len(SERVICES) >= 5
    assert SCOPES.keys() == {
        f"/{service.full_name}/{method.name}" for service in SERVICES for method in service.methods
    }


def test_what_only_asks_can_be_asked_by_readers_and_nothing_else() -> None:
    asking = ("Get", "List", "Stream", "Summarize", "Compare", "Predict", "Watch", "Preview")
    for path, scope in SCOPES.items():
        name = path.rpartition("/")[2]
        reads = name.startswith(asking) or name == "ExportCache"
        assert (scope is Scope.READ) == reads, path


@pytest.mark.parametrize("path", ["/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"])  # fmt: skip
def test_probes_and_reflection_need_nothing(path: str) -> None:
    assert needed(path) is None


@pytest.mark.parametrize("path", ["/grpc.channelz.v1.Channelz/GetServers", "/unmask.v1.New/Call",
    "/", ""])  # fmt: skip
def test_what_nobody_thought_of_needs_the_most(path: str) -> None:
    assert needed(path) is Scope.ADMIN


def test_a_scope_includes_those_before_it() -> None:
    assert Scope.READ < Scope.GROW < Scope.ADMIN
    assert [Scope.named(scope.label) for scope in Scope] == list(Scope)
    with pytest.raises(ValueError, match="no scope; there are read, grow and admin"):
        Scope.named("root")
