"""Every RPC of a server, from the descriptors."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import unmask.v1
from google.protobuf.descriptor import Descriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2

OURS = "unmask.v1."


@dataclass(frozen=True)
class Rpc:
    """A method, with one request and one or many answers."""

    path: str
    request: Descriptor
    response: Descriptor
    streams: bool

    @property
    def name(self) -> str:
        """Service and method."""
        service, method = self.path[1:].split("/")
        return f"{service.removeprefix(OURS)}/{method}"

    @property
    def is_ours(self) -> bool:
        return self.path.startswith("/" + OURS)

    def new_request(self) -> Message:
        return GetMessageClass(self.request)()

    def parse_response(self, data: bytes) -> Message:
        return GetMessageClass(self.response).FromString(data)


def all_rpcs() -> list[Rpc]:
    """Of the contract, whatever it is today, and of the health service; in order of their paths."""
    return sorted(_found(), key=lambda rpc: rpc.path)


def _found() -> Iterator[Rpc]:
    for module in (*_contract(), health_pb2):
        for service in module.DESCRIPTOR.services_by_name.values():
            yield from _methods(service)


def _contract() -> Iterator[Any]:
    for found in pkgutil.iter_modules(unmask.v1.__path__):
        if found.name.endswith("_pb2"):
            yield importlib.import_module(f"unmask.v1.{found.name}")


def _methods(service: ServiceDescriptor) -> Iterator[Rpc]:
    for method in service.methods:
        if not method.client_streaming:
            yield Rpc(
                f"/{service.full_name}/{method.name}",
                method.input_type,
                method.output_type,
                method.server_streaming,
            )
