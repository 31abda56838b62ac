"""`unmask-server health`, as container engines and scripts use it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import HealthServicer
from typer.testing import CliRunner
from unmask_server.cli import app
from unmask_server.configuration.loading import load
from unmask_server.health_check import own_address

STATUS = health_pb2.HealthCheckResponse


@pytest.fixture
def health(tmp_path: Path) -> Iterator[tuple[HealthServicer, str]]:
    """What a server answers, and where."""
    servicer = HealthServicer()
    server = grpc.server(ThreadPoolExecutor(2))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    address = f"unix:{tmp_path}/socket"
    server.add_insecure_port(address)
    server.start()
    yield servicer, address
    server.stop(None).wait()


def asked(*arguments: str, **environment: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["health", *arguments], env=environment)
    return done.exit_code, done.output


def test_it_exits_with_0_only_if_the_server_serves(health: tuple[HealthServicer, str]) -> None:
    servicer, address = health
    assert asked("--address", address) == (0, f"{address}: SERVING\n")
    servicer.set("", STATUS.NOT_SERVING)
    assert asked("--address", address) == (1, f"{address}: NOT_SERVING\n")


def test_a_service_is_asked_for_by_name(health: tuple[HealthServicer, str]) -> None:
    servicer, address = health
    servicer.set("unmask.v1.GrowthService", STATUS.NOT_SERVING)
    assert asked("unmask.v1.GrowthService", "--address", address)[0] == 1
    status, output = asked("unmask.v1.Nothing", "--address", address)
    assert status == 1
    assert "NOT_FOUND" in output


def test_the_address_is_one_that_the_server_was_told(health: tuple[HealthServicer, str]) -> None:
    _, address = health
    assert asked(UNMASK_LISTEN=f"0.0.0.0:1,{address}")[0] == 0


def test_nobody_there_is_no_health(tmp_path: Path) -> None:
    status, output = asked("--address", f"unix:{tmp_path}/nobody")
    assert status == 1
    assert "UNAVAILABLE" in output


@pytest.mark.parametrize(
    ("settings", "address"),
    [
        ({"listen": "0.0.0.0:50051"}, "localhost:50051"),
        ({"listen": "[::]:50051"}, "localhost:50051"),
        ({"listen": "10.0.0.1:50051"}, "10.0.0.1:50051"),
        ({"listen": "0.0.0.0:50051,unix:/run/unmask.sock"}, "unix:/run/unmask.sock"),
        ({"listen": "0.0.0.0:1", "admin_listen": "127.0.0.1:2"}, "127.0.0.1:2"),
        ({"listen": "0.0.0.0:1,unix:socket", "tls_cert": "cert.pem"}, "unix:socket"),
    ],
)
def test_a_server_is_asked_where_its_own_machine_reaches_it(
    settings: dict[str, str], address: str
) -> None:
    assert own_address(load(settings, "").settings) == address


def test_with_tls_a_socket_is_needed() -> None:
    with pytest.raises(ValueError, match="unix:PATH"):
        own_address(load({"listen": "0.0.0.0:1", "tls_cert": "cert.pem"}, "").settings)
