"""Who may call what, over a real socket."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import unmask
from google.rpc import error_details_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status
from structlog.testing import capture_logs
from unmask.v1 import catalog_pb2
from unmask_server.access.principals import Budget, Scope
from unmask_server.access.tokens import TokenStore
from unmask_server.api.scopes import SCOPES

from tests.e2e.conftest import World, serving

Secrets = dict[Scope, str]


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[World]:
    """A server that wants tokens."""
    async with serving(f"sqlite:///{tmp_path}/unmask.db", tmp_path, auth=["tokens"]) as world:
        yield world


@pytest.fixture
def secrets(guarded: World) -> Secrets:
    """A token of each scope."""
    store = TokenStore(guarded.app.database)
    return {
        scope: store.create(scope.label, scope, expires_at=None, budget=Budget())[1]
        for scope in Scope
    }


def bearing(*secrets: str) -> tuple[tuple[str, str], ...]:
    return tuple(("authorization", f"Bearer {secret}") for secret in secrets)


async def outcome(
    world: World, path: str, metadata: Any = (), sent: bytes = b""
) -> tuple[grpc.StatusCode, str]:
    """Code and reason of a call."""
    try:
        call = world.stubs.channel.unary_stream(path)(sent, metadata=metadata, timeout=60)
        async for _ in call:
            break
        call.cancel()
    except grpc.aio.AioRpcError as error:
        return error.code(), reason_of(error)
    return grpc.StatusCode.OK, ""


def reason_of(error: grpc.aio.AioRpcError) -> str:
    status = rpc_status.from_call(error)
    info = error_details_pb2.ErrorInfo()
    for detail in status.details if status else ():
        if detail.Unpack(info):
            return info.reason
    return ""


async def test_without_a_token_nothing_is_answered(guarded: World) -> None:
    for path in SCOPES:
        code, reason = await outcome(guarded, path)
        assert (code, reason) == (grpc.StatusCode.UNAUTHENTICATED, "CREDENTIALS_MISSING"), path


async def test_each_call_is_open_to_its_scope_and_those_above(
    guarded: World, secrets: Secrets
) -> None:
    for path, needed in SCOPES.items():
        for scope, secret in secrets.items():
            code, reason = await outcome(guarded, path, bearing(secret))
            if scope < needed:
                assert (code, reason) == (grpc.StatusCode.PERMISSION_DENIED, "SCOPE_MISSING"), path
            else:
                assert code not in (
                    grpc.StatusCode.UNAUTHENTICATED,
                    grpc.StatusCode.PERMISSION_DENIED,
                ), (path, scope)


@pytest.mark.parametrize(
    "metadata",
    [
        bearing("unmask_" + "x" * 43),
        bearing(""),
        bearing("x.y.z"),
        (("authorization", "Basic YWRtaW46YWRtaW4="),),
        (("authorization", "Bearer"),),
        (("authorization", "Bearer " + "x" * 5000),),
    ],
)
async def test_credentials_that_do_not_hold_are_refused(
    guarded: World, secrets: Secrets, metadata: Any
) -> None:
    code, reason = await outcome(guarded, "/unmask.v1.CatalogService/ListPolicies", metadata)
    assert (code, reason) == (grpc.StatusCode.UNAUTHENTICATED, "CREDENTIALS_INVALID")


async def test_an_address_fails_so_often_and_what_held_before_holds(tmp_path: Path) -> None:
    options = {"auth": ["tokens"], "client_failures": 0.01}
    async with serving(f"sqlite:///{tmp_path}/unmask.db", tmp_path, **options) as world:
        store, path = TokenStore(world.app.database), "/unmask.v1.CatalogService/ListPolicies"
        old, new = (
            store.create(name, Scope.READ, expires_at=None, budget=Budget())[1]
            for name in ("old", "new")
        )
        assert (await outcome(world, path, bearing(old)))[0] is grpc.StatusCode.OK
        # Nobody is asked about a call without a token, so it is no failure.
        assert (await outcome(world, path))[1] == "CREDENTIALS_MISSING"
        wrong = bearing("unmask_" + "x" * 43)
        assert (await outcome(world, path, wrong))[1] == "CREDENTIALS_INVALID"
        for refused in (wrong, bearing(new)):
            assert await outcome(world, path, refused) == (
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "RATE_LIMITED",
            )
        assert (await outcome(world, path, bearing(old)))[0] is grpc.StatusCode.OK


async def test_what_is_not_there_is_told_to_those_who_may_know(
    guarded: World, secrets: Secrets
) -> None:
    path = "/unmask.v1.New/Call"
    assert (await outcome(guarded, path))[0] is grpc.StatusCode.UNAUTHENTICATED
    code, _ = await outcome(guarded, path, bearing(secrets[Scope.GROW]))
    assert code is grpc.StatusCode.PERMISSION_DENIED
    code, _ = await outcome(guarded, path, bearing(secrets[Scope.ADMIN]))
    assert code is grpc.StatusCode.UNIMPLEMENTED


async def test_two_tokens_in_one_call_are_none(guarded: World, secrets: Secrets) -> None:
    both = bearing(secrets[Scope.READ], secrets[Scope.ADMIN])
    code, reason = await outcome(guarded, "/unmask.v1.CatalogService/ListPolicies", both)
    assert (code, reason) == (grpc.StatusCode.UNAUTHENTICATED, "CREDENTIALS_MISSING")


async def test_the_scheme_is_read_in_any_case(guarded: World, secrets: Secrets) -> None:
    metadata = (("authorization", f"bEARER {secrets[Scope.READ]}"),)
    code, _ = await outcome(guarded, "/unmask.v1.CatalogService/ListPolicies", metadata)
    assert code is grpc.StatusCode.OK


async def test_probes_and_reflection_need_no_token(guarded: World) -> None:
    code, _ = await outcome(guarded, "/grpc.health.v1.Health/Check")
    assert code is grpc.StatusCode.OK
    stub = reflection_pb2_grpc.ServerReflectionStub(guarded.stubs.channel)
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    async for answer in stub.ServerReflectionInfo(iter([asked])):
        assert any(s.name.startswith("unmask.v1") for s in answer.list_services_response.service)


async def test_an_answer_that_is_kept_is_given_to_nobody_without_a_token(
    guarded: World, secrets: Secrets
) -> None:
    path, request = "/unmask.v1.DiagnosisService/GetNode", b"\x0a\x01x"
    guarded.app.answers.put(
        ("GetNode", request), 1, 1, b"kept", latest=False, since=time.monotonic()
    )
    call = guarded.stubs.channel.unary_unary(path)
    assert await call(request, metadata=bearing(secrets[Scope.READ])) == b"kept"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(request)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_refused_message_is_not_even_read(guarded: World) -> None:
    # It could not be parsed, and is larger than the server takes.
    message = b"\xff" * (guarded.settings.max_message_mib * 2**20 + 1)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await guarded.stubs.channel.unary_unary("/unmask.v1.CatalogService/RegisterQuestions")(
            message, timeout=60
        )
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_revoked_token_ends_while_it_is_used(
    guarded: World, secrets: Secrets, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, metadata = "/unmask.v1.CatalogService/ListPolicies", bearing(secrets[Scope.READ])
    assert (await outcome(guarded, path, metadata))[0] is grpc.StatusCode.OK
    monkeypatch.setattr("unmask_server.access.tokens.FRESH_SECONDS", 0.0)
    TokenStore(guarded.app.database).revoke("read")
    assert await outcome(guarded, path, metadata) == (
        grpc.StatusCode.UNAUTHENTICATED,
        "CREDENTIALS_REVOKED",
    )


async def test_no_secret_is_logged_or_told(guarded: World, secrets: Secrets) -> None:
    wrong = "unmask_" + "Secret" * 7 + "x"
    with capture_logs() as logs:
        for metadata in (
            bearing(wrong),
            bearing(secrets[Scope.READ]),
            bearing(secrets[Scope.READ], wrong),
        ):
            try:
                await guarded.stubs.catalog.RegisterVerifier(
                    catalog_pb2.RegisterVerifierRequest(), metadata=metadata
                )
            except grpc.aio.AioRpcError as error:
                told = repr((error.details(), error.trailing_metadata(), str(error)))
                assert "Secret" not in told
                assert secrets[Scope.READ] not in told
        # A line is written after its answer was sent.
        async with asyncio.timeout(60):
            while len(logs) < 3:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    # Who it was is told where that is known.
    assert [line["client"] for line in logs] == ["", "token:read", ""]
    assert "Secret" not in repr(logs)
    assert secrets[Scope.READ] not in repr(logs)


async def test_the_client_sends_its_token(
    guarded: World, secrets: Secrets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def policies(token: str | Callable[[], str] | None) -> list[Any]:
        client = unmask.AsyncClient(guarded.address, token=token)
        try:
            return [policy async for policy in client.list_policies()]
        finally:
            await client.close()

    monkeypatch.delenv("UNMASK_TOKEN", raising=False)
    monkeypatch.delenv("UNMASK_TOKEN_FILE", raising=False)
    with pytest.raises(unmask.UnauthenticatedError, match="say who calls"):
        await policies(None)
    assert await policies(secrets[Scope.READ]) == []
    assert await policies(lambda: secrets[Scope.READ]) == []
    file = tmp_path / "token"
    file.write_text(secrets[Scope.READ] + "\n")
    monkeypatch.setenv("UNMASK_TOKEN_FILE", str(file))
    assert await policies(None) == []
    monkeypatch.setenv("UNMASK_TOKEN", "another")
    with pytest.raises(unmask.UnauthenticatedError):
        await policies(None)
    client = unmask.AsyncClient(guarded.address, token=secrets[Scope.READ])
    with pytest.raises(unmask.PermissionDeniedError, match="needs the scope grow"):
        await client.register_verifier("last_number")
    await client.close()


async def test_a_token_in_a_file_may_be_renewed_there(
    guarded: World, secrets: Secrets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("UNMASK_TOKEN", raising=False)
    file = tmp_path / "token"
    monkeypatch.setenv("UNMASK_TOKEN_FILE", str(file))
    file.write_text(secrets[Scope.READ])
    client = unmask.AsyncClient(guarded.address)
    with pytest.raises(unmask.PermissionDeniedError):
        await client.register_verifier("regex")
    file.write_text(secrets[Scope.GROW])
    with pytest.raises(unmask.InvalidArgumentError):
        await client.register_verifier("regex")
    await client.close()


async def test_without_auth_nobody_is_asked(tmp_path: Path) -> None:
    async with serving(f"sqlite:///{tmp_path}/unmask.db", tmp_path) as world:
        code, _ = await outcome(world, "/unmask.v1.CatalogService/ListPolicies")
        assert code is grpc.StatusCode.OK
