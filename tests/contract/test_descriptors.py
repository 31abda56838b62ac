"""The stubs of the thin client are the contract without its rules; servers hold and show all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import grpc
from google.protobuf import descriptor_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from unmask.v1 import cache_pb2, catalog_pb2, diagnosis_pb2, growth_pb2, sharing_pb2, trajectory_pb2
from unmask_server.api.contract import contract_pool

from tests.e2e.conftest import serving
from tools.contract.descriptors import thin

MODULES = (cache_pb2, catalog_pb2, diagnosis_pb2, growth_pb2, sharing_pb2, trajectory_pb2)
VALIDATE = "buf/validate/validate.proto"


def held() -> dict[str, descriptor_pb2.FileDescriptorProto]:
    pool = contract_pool()
    names = [module.DESCRIPTOR.name for module in MODULES]
    return {
        name: descriptor_pb2.FileDescriptorProto.FromString(pool.FindFileByName(name).serialized_pb)
        for name in names
    }


def test_stubs_and_the_servers_contract_differ_in_the_rules_alone() -> None:
    for module in MODULES:
        stub = descriptor_pb2.FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb)
        (stripped,) = thin(descriptor_pb2.FileDescriptorSet(file=[held()[stub.name]])).file
        assert VALIDATE not in stub.dependency
        assert stripped == stub


def test_the_client_registers_nothing_of_buf_validate() -> None:
    """Two versions of it cannot be in one process: whoever has another one may use the client."""
    code = (
        "import sys\n"
        "for name in ('protovalidate', 'protobuf'): sys.modules[name] = None\n"
        "import unmask, unmask.requests.catalog, unmask.requests.growth\n"
        "from google.protobuf import descriptor_pool\n"
        f"try: descriptor_pool.Default().FindFileByName({VALIDATE!r})\n"
        "except KeyError: print('none')\n"
        "print([name for name in sys.modules if 'validate' in name and 'buf' in name])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:3] == ["none", "[]", ""]


def test_the_client_works_beside_another_version_of_the_rules(tmp_path: Path) -> None:
    code = (
        "from google.protobuf import descriptor_pb2, descriptor_pool\n"
        f"other = descriptor_pb2.FileDescriptorProto(name={VALIDATE!r}, package='buf.validate')\n"
        "other.message_type.add(name='AnotherVersion')\n"
        "descriptor_pool.Default().Add(other)\n"
        "from unmask.v1 import growth_pb2\n"
        "import unmask\n"
        "print(growth_pb2.StartGrowthRequest(request_id='a').request_id, unmask.Client.__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["a", "Client"]


async def test_reflection_shows_the_rules(tmp_path: Path) -> None:
    async with serving(f"sqlite:///{tmp_path / 'unmask.db'}", tmp_path) as world:

        def ask() -> descriptor_pb2.FileDescriptorProto:
            with grpc.insecure_channel(world.address) as channel:
                database = ProtoReflectionDescriptorDatabase(channel)
                assert "unmask.v1.GrowthService" in database.get_services()
                assert database.FindFileContainingSymbol("grpc.health.v1.Health")
                return database.FindFileByName("unmask/v1/growth.proto")

        import asyncio

        shown = await asyncio.to_thread(ask)
    assert VALIDATE in shown.dependency
    assert shown == held()[shown.name]
