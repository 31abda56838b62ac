"""What a request names, the server reads and calls only if it was told that it may."""

from __future__ import annotations

import ipaddress
import os
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import grpc
import pytest
from sqlalchemy import insert
from unmask.v1 import catalog_pb2
from unmask_server.access import sources as module
from unmask_server.access.errors import SourceNotAllowed
from unmask_server.access.listening import sources_of
from unmask_server.access.sources import Sources
from unmask_server.catalog import Catalog, Grader
from unmask_server.config import Settings
from unmask_server.database import schema
from unmask_server.database.connect import open_database, write
from unmask_server.database.migrate import migrate
from unmask_server.engines.base import EngineError, Sampling
from unmask_server.engines.pool import EnginePool
from unmask_server.engines.sglang import MismatchError, server_info
from unmask_server.launched import LaunchedModels
from unmask_server.readiness.models import ModelsCheck

from tests.access.test_calls import reason_of
from tests.catalog.checkpoints import checkpoint
from tests.e2e.conftest import World, serving


@pytest.fixture
async def held(tmp_path: Path) -> AsyncIterator[World]:
    """A server that may read below `models` and call one host."""
    (tmp_path / "models").mkdir()
    async with serving(
        f"sqlite:///{tmp_path}/unmask.db",
        tmp_path,
        model_roots=[str(tmp_path / "models")],
        endpoint_hosts=["gpu.example:30000"],
    ) as world:
        yield world


async def refused(world: World, **request: Any) -> str:
    """Why a policy cannot be registered: the reason, and what is said."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await world.stubs.catalog.RegisterPolicy(catalog_pb2.RegisterPolicyRequest(**request))
    return f"{reason_of(caught.value)} {caught.value.details()}"


# ---------------------------------------------------------------------------------- directories


async def test_models_are_read_from_below_the_roots_only(held: World, tmp_path: Path) -> None:
    inside = checkpoint(tmp_path / "models" / "team" / "student")
    outside = checkpoint(tmp_path / "elsewhere")
    await held.stubs.catalog.RegisterPolicy(
        catalog_pb2.RegisterPolicyRequest(name="student", model=inside, max_new_tokens=4)
    )
    for path in (
        outside,
        f"{tmp_path}/models/../elsewhere",
        f"{tmp_path}/models/team/../../elsewhere",
        f"{tmp_path}/models-of-others",
        "/etc",
        "/",
        "~",
        "~root",
        "..",
        "/proc/self/root" + outside,
        "\x01",
        "x" * 4000,
    ):
        told = await refused(held, model=path)
        assert told.startswith("SOURCE_NOT_ALLOWED model: "), path
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await held.stubs.catalog.RegisterTeacher(
            catalog_pb2.RegisterTeacherRequest(model=outside, policies=["student"])
        )
    assert reason_of(caught.value) == "SOURCE_NOT_ALLOWED"


async def test_nobody_learns_what_is_outside(held: World, tmp_path: Path) -> None:
    checkpoint(tmp_path / "there")
    told = {
        (await refused(held, model=str(tmp_path / name))).replace(name, "X")
        for name in ("there", "not-there")
    }
    assert len(told) == 1


async def test_links_out_of_the_roots_lead_nowhere(held: World, tmp_path: Path) -> None:
    models = tmp_path / "models"
    checkpoint(tmp_path / "elsewhere")
    (models / "linked").symlink_to(tmp_path / "elsewhere")
    assert (await refused(held, model=str(models / "linked"))).startswith("SOURCE_NOT_ALLOWED")
    for name in ("tokenizer.json", "config.json", "model.safetensors", "notes.txt"):
        folder = models / f"with-{name}"
        checkpoint(folder)
        (folder / name).unlink(missing_ok=True)
        secret = tmp_path / "secret"
        secret.write_text("{}")
        (folder / name).symlink_to(secret)
        told = await refused(held, model=str(folder))
        assert told.startswith("SOURCE_NOT_ALLOWED"), name
        assert "link to outside" in told


async def test_links_within_the_roots_are_as_usual(held: World, tmp_path: Path) -> None:
    """A Hugging Face cache is made of them."""
    blobs, snapshot = tmp_path / "models" / "blobs", tmp_path / "models" / "snapshots" / "abc"
    checkpoint(blobs)
    snapshot.mkdir(parents=True)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(os.path.relpath(file, snapshot))
    await held.stubs.catalog.RegisterPolicy(
        catalog_pb2.RegisterPolicyRequest(model=str(snapshot), max_new_tokens=4)
    )


async def test_devices_and_pipes_hold_up_nobody(held: World, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "student"
    checkpoint(folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    os.mkfifo(folder / "chat_template.jinja")
    assert "is no ordinary file" in await refused(held, model=str(folder))


async def test_an_index_names_files_of_its_own_directory_only(held: World, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "student"
    checkpoint(folder)
    for name in ("../../secret.safetensors", "/etc/passwd", "sub/model.safetensors"):
        index = f'{{"weight_map": {{"a": "{name}"}}}}'
        (folder / "model.safetensors.index.json").write_text(index)
        told = await refused(held, model=str(folder))
        assert "which is elsewhere" in told, name


def test_what_another_server_says_of_a_model_is_no_way_around(
    tmp_path: Path, database: Any
) -> None:
    """A description that was imported holds a path; it may lie."""
    grader = Grader()
    outside = checkpoint(tmp_path / "elsewhere")
    (tmp_path / "models").mkdir()
    policy, _ = Catalog(database, grader).register_policy(
        path=outside, name=None, sampling=Sampling(), max_new_tokens=4
    )
    held = Catalog(database, grader, Sources([str(tmp_path / "models")], []))
    for read in (held.tokenizer, held.check_model_unchanged):
        with pytest.raises(SourceNotAllowed):
            read(replace(policy.model, fingerprint="f" * 32))
    grader.close()


def test_code_that_comes_with_a_model_is_never_run() -> None:
    """`trust_remote_code` is off unless somebody turns it on; pickles are read as data only."""
    server = Path(module.__file__).parents[1]
    for file in server.rglob("*.py"):
        text = file.read_text()
        for risk in (
            "trust_remote_code=True",
            "weights_only=False",
            "torch.load(",
            "import pickle",
        ):
            assert risk not in text, f"{risk} in {file}"


# ----------------------------------------------------------------------------------------- hosts


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://169.254.169.254",
        "http://[::ffff:169.254.169.254]:80",
        "http://2852039166",  # the same address, written otherwise
        "http://[fe80::1]:30000",
        "http://[fd00:ec2::254]",
        "http://100.100.100.200",
        "http://0.0.0.0:30000",
        "http://[::]:30000",
        "http://224.0.0.1:30000",
        "http://[64:ff9b::169.254.169.254]:80",  # NAT64
        "http://[64:ff9b:1::100.100.100.200]",
        "http://[2002:a9fe:a9fe::1]",  # 6to4 of 169.254.169.254
        "http://[2001:0:a9fe:a9fe::1]",  # Teredo, by a server there
        "http://[::169.254.169.254]",
    ],
)
def test_metadata_and_link_local_addresses_are_never_called(endpoint: str) -> None:
    for hosts in (None, ["*"], ["0.0.0.0/0", "::/0"], [endpoint.partition("://")[2]]):
        sources = Sources(None, hosts)
        with pytest.raises(SourceNotAllowed):
            sources.endpoint(endpoint, "endpoints[0]")


@pytest.mark.parametrize(
    ("hosts", "url", "allowed"),
    [
        (["gpu:30000"], "http://gpu:30000", True),
        (["gpu:30000"], "http://gpu:30001", False),
        (["gpu:30000"], "http://gpu", False),
        (["gpu"], "http://gpu:30001", True),
        (["gpu"], "http://GPU.:30001", True),
        (["gpu:443"], "https://gpu", True),
        (["*.example"], "http://a.b.example:1", True),
        (["*.example"], "http://example:1", False),
        (["*.example"], "http://badexample:1", False),
        (["gpu"], "http://gpu.evil.example:1", False),
        (["10.0.0.0/8"], "http://10.1.2.3:1", True),
        (["10.0.0.0/8"], "http://11.1.2.3:1", False),
        (["10.0.0.0/8"], "http://[::ffff:10.1.2.3]:1", True),
        (["*"], "http://anything:1", True),
        (["127.0.0.1:30000"], "http://127.0.0.1:30000", True),
        (["127.0.0.1:30000"], "http://127.0.0.1:22", False),
        (["gpu"], "http://127.0.0.1:30000", False),
        (["localhost"], "http://localhost:1", True),
        (["*"], "http://localhost:1", False),
        (["*"], "http://127.0.0.1:1", False),
        (["*", "127.0.0.1"], "http://127.0.0.1:1", True),
        (["*"], "http://[::ffff:127.0.0.1]:1", False),
        (["*"], "http://[64:ff9b::127.0.0.1]:1", False),
        (["*"], "http://[2002:7f00:1::1]:1", False),
        (["*"], "http://[64:ff9b::192.0.2.1]:1", True),
        (["*"], "http://[2002:c000:201::1]:1", True),
        ([], "http://gpu:30000", False),
        (None, "http://127.0.0.1:30000", True),
    ],
)
def test_hosts_are_called_if_they_are_listed(
    hosts: list[str] | None, url: str, allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {"gpu": "192.0.2.1", "anything": "192.0.2.2", "localhost": "127.0.0.1"}
    look_up = module._look_up

    def known(host: str) -> list[Any]:
        if host.rstrip(".") in names:
            return [ipaddress.ip_address(names[host.rstrip(".")])]
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return []
        return look_up(host)

    monkeypatch.setattr(module, "_look_up", known)
    sources = Sources(None, hosts)
    if allowed:
        sources.endpoint(url, "endpoints[0]")
    else:
        with pytest.raises(SourceNotAllowed, match="endpoint_hosts"):
            sources.endpoint(url, "endpoints[0]")


async def test_endpoints_of_requests_are_held_to_the_list(held: World, tmp_path: Path) -> None:
    inside = checkpoint(tmp_path / "models" / "student")
    with listening() as (url, asked):
        for request in ({"model": inside, "endpoints": [url]}, {"endpoints": [url]}):
            told = await refused(held, **request)
            assert told.startswith("SOURCE_NOT_ALLOWED endpoints[0]: ")
        assert not asked
    for bad in (
        "http://user:secret@gpu.example:30000",
        "file:///etc/passwd",
        "gopher://x",
        "http://",
    ):
        told = await refused(held, model=inside, endpoints=[bad])
        assert told.startswith("INVALID_FIELD"), bad
        assert "secret" not in told


@pytest.mark.parametrize("address", ["127.0.0.1", "169.254.169.254", "64:ff9b::a9fe:a9fe"])
async def test_a_name_that_comes_to_mean_this_machine_or_a_metadata_address_leads_nowhere(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: what was checked at registration is checked when it is called, too."""
    sources = Sources(None, ["rebound.example"])
    with listening() as (url, asked):
        port = int(url.rpartition(":")[2])
        target = f"http://rebound.example:{port}"
        real = socket.getaddrinfo

        def rebound(host: Any, *args: Any, **kwargs: Any) -> Any:
            return real(address if host == "rebound.example" else host, *args, **kwargs)

        monkeypatch.setattr(socket, "getaddrinfo", rebound)
        with pytest.raises(EngineError, match="no address that this server may call"):
            await server_info(target, may_call=sources.may_call([target]))
        assert not asked


async def test_a_name_is_called_at_whatever_other_address_it_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Names are listed whose DNS is trusted: here, one that means this machine all the time."""
    sources = Sources(None, ["rebound.example", "127.0.0.0/8"])
    with listening() as (url, asked):
        target = f"http://rebound.example:{url.rpartition(':')[2]}"
        real = socket.getaddrinfo
        monkeypatch.setattr(
            socket, "getaddrinfo", lambda host, *args, **kwargs: real("127.0.0.1", *args, **kwargs)
        )
        with pytest.raises(MismatchError):
            await server_info(target, may_call=sources.may_call([target]))
        assert asked


async def test_addresses_written_as_numbers_are_checked_when_they_are_called() -> None:
    with listening() as (url, asked):
        sources = Sources(None, ["gpu.example"])
        with pytest.raises(EngineError, match="no address that this server may call"):
            await server_info(url, may_call=sources.may_call([url]))
        assert not asked


async def test_whoever_answers_cannot_send_the_server_elsewhere() -> None:
    with listening() as (secret, asked), listening(redirect=secret) as (url, _):
        with pytest.raises(MismatchError, match="sends callers elsewhere"):
            await server_info(url)
        assert not asked


async def test_whether_a_server_is_well_is_asked_of_nobody_it_points_to(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'unmask.db'}"
    migrate(url)
    database = open_database(url)
    engines = EnginePool(Mock(), max_engines=1)
    check = ModelsCheck(database, engines, LaunchedModels(Settings()), Sources(None, None))
    with listening() as (secret, asked), listening(redirect=secret) as (endpoint, probed):
        with write(database) as connection:
            model = {"architecture": "", "vocab_size": 1, "max_context": 1, "eos_ids": []}
            of = {"fingerprint": "a", "tokenizer_fingerprint": "a", "created_at": 1.0}
            row = {**model, **of, "source": str(tmp_path), "endpoints": [endpoint]}
            connection.execute(insert(schema.model), row)
        assert await check.problem(store_is_there=True) == f"{endpoint} does not answer"
        assert probed == ["/health"]
        assert not asked
    database.dispose()


def test_servers_that_were_started_here_may_be_called() -> None:
    sources = Sources([], [])
    with pytest.raises(SourceNotAllowed):
        sources.endpoint("http://127.0.0.1:30000", "endpoints[0]")
    sources.trust("http://127.0.0.1:30000")
    sources.endpoint("http://127.0.0.1:30000/", "endpoints[0]")
    assert sources.may_call(["http://127.0.0.1:30000"]) is None
    assert sources.may_call(["http://127.0.0.1:30000", "http://gpu:1"]) is not None


# -------------------------------------------------------------------------------------- settings


def test_without_settings_a_users_own_server_is_open_and_any_other_is_not(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "student")
    sources_of(Settings()).folder(path, "model")
    sources_of(Settings()).endpoint("http://127.0.0.1:30000", "endpoints[0]")
    for settings in (Settings(auth="tokens"), Settings(listen=["0.0.0.0:0"], insecure=True)):
        with pytest.raises(SourceNotAllowed):
            sources_of(settings).folder(path, "model")
        with pytest.raises(SourceNotAllowed):
            sources_of(settings).endpoint("http://127.0.0.1:30000", "endpoints[0]")
    listed = Settings(auth="tokens", model_roots=str(tmp_path))
    assert sources_of(listed).folder(path, "model") == Path(path)
    launched = Settings(auth="tokens", sglang_launch=[f"'{path}' --tp 2"])
    assert sources_of(launched).folder(path, "model") == Path(path)


@pytest.mark.parametrize(
    ("roots", "hosts", "told"),
    [
        (["/no/such/directory"], None, "model_roots: /no/such/directory is no directory"),
        (None, ["http://gpu"], "endpoint_hosts: "),
        (None, ["10.0.0.0/99"], "endpoint_hosts: "),
        (None, ["gpu:port"], "endpoint_hosts: "),
        (None, ["user@gpu"], "endpoint_hosts: "),
    ],
)
def test_lists_that_cannot_be_read_are_refused(
    roots: list[str] | None, hosts: list[str] | None, told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        Sources(roots, hosts)


@contextmanager
def listening(redirect: str | None = None) -> Iterator[tuple[str, list[str]]]:
    """A web server on this machine: its address, and what it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(302 if redirect else 404)
            if redirect:
                self.send_header("location", redirect + self.path)
            self.send_header("content-length", "0")
            self.end_headers()

        do_POST = do_GET  # noqa: N815

        def log_message(self, *args: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
