"""A server on its sockets, from start to graceful stop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
import stat
import threading
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn

import grpc
import structlog
from google.protobuf import descriptor_pool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from unmask.v1 import (
    cache_pb2,
    cache_pb2_grpc,
    catalog_pb2,
    catalog_pb2_grpc,
    diagnosis_pb2,
    diagnosis_pb2_grpc,
    growth_pb2,
    growth_pb2_grpc,
    trajectory_pb2,
    trajectory_pb2_grpc,
)

from unmask_server.access.listening import check_listening, is_local, is_socket, sources_of
from unmask_server.access.principals import Scope
from unmask_server.access.tls import Certificates
from unmask_server.access.verifiers import verifiers
from unmask_server.api.access import AccessInterceptor
from unmask_server.api.answers import AnswerInterceptor
from unmask_server.api.contract import Contract, ContractInterceptor, contract_pool
from unmask_server.api.errors import ErrorInterceptor
from unmask_server.api.guard import CallGuard
from unmask_server.api.health import Health
from unmask_server.api.observing import ObservingInterceptor
from unmask_server.api.reflection import add_reflection, reflection_files
from unmask_server.app import App, build
from unmask_server.config import Settings
from unmask_server.connections import options
from unmask_server.database.connect import without_password
from unmask_server.readiness.models import ModelsCheck
from unmask_server.readiness.store import StoreCheck
from unmask_server.telemetry import tracing
from unmask_server.watched import metrics_served

log = structlog.get_logger(__name__)

HEALTH = "grpc.health.v1.Health"
_LONG = 3600.0
"""Seconds; `CallGuard.drain` ends calls before."""
_LAST = 0.2
"""What is left then: streams of health and reflection."""
HARD_SECONDS = 15.0
"""What putting everything away may take beyond the grace: then the process ends as it is."""
TWICE_SECONDS = 0.5
"""Signals so soon after the first one are the same: a terminal or `timeout` sends it to a program
and to its parent, who passes it on."""
HARD_STATUS = 128 + signal.SIGTERM
THREADS = 64
"""For calls that block."""

SERVICES = tuple(
    module.DESCRIPTOR.services_by_name[name].full_name
    for module, name in (
        (catalog_pb2, "CatalogService"),
        (trajectory_pb2, "TrajectoryService"),
        (diagnosis_pb2, "DiagnosisService"),
        (growth_pb2, "GrowthService"),
        (cache_pb2, "CacheService"),
    )
)


@contextlib.asynccontextmanager
async def running(settings: Settings, app: App | None = None) -> AsyncIterator[list[str]]:
    """A server that listens while the context is open. Yields the addresses it is bound to."""
    tls = check_listening(settings)
    certificates = Certificates(tls) if tls else None
    app = app or build(settings)
    who = verifiers(settings, app.database)
    scope = Scope.named(settings.tls_client_scope) if tls and tls.client_ca and not who else None
    access = AccessInterceptor(who, settings.client_failures, scope) if who or scope else None
    guard = CallGuard(settings)
    store = StoreCheck(settings.database)
    models = ModelsCheck(app.database, app.engines, app.launched, sources_of(settings))
    health = Health(SERVICES, store, models)
    pool = contract_pool(health_pb2.DESCRIPTOR.serialized_pb, *reflection_files())
    server = grpc.aio.server(
        interceptors=[
            ObservingInterceptor(
                settings.access_log, pool, SERVICES, settings.max_message_mib * 2**20
            ),
            *([access] if access else []),
            guard,
            AnswerInterceptor(app.answers),
            ErrorInterceptor(),
            ContractInterceptor(Contract(pool)),
        ],
        options=options(settings),
        maximum_concurrent_rpcs=settings.max_concurrent_calls,
    )
    catalog_pb2_grpc.add_CatalogServiceServicer_to_server(app.catalog_service, server)
    trajectory_pb2_grpc.add_TrajectoryServiceServicer_to_server(app.trajectory_service, server)
    diagnosis_pb2_grpc.add_DiagnosisServiceServicer_to_server(app.diagnosis_service, server)
    growth_pb2_grpc.add_GrowthServiceServicer_to_server(app.growth_service, server)
    cache_pb2_grpc.add_CacheServiceServicer_to_server(app.cache_service, server)
    health_pb2_grpc.add_HealthServicer_to_server(health.servicer, server)
    add_reflection((*SERVICES, HEALTH), server, pool)
    admin = _admin_server(settings, health) if settings.admin_listen else None
    servers = [server] if admin is None else [server, admin]
    told = contextlib.AsyncExitStack()
    try:
        await told.enter_async_context(metrics_served(app, settings))
        credentials = certificates.credentials() if certificates else None
        bound = [_bind(server, address, credentials) for address in settings.listen]
        if admin is not None:
            for address in settings.admin_listen:
                log.info("for operators", listen=_bind(admin, address, None))
        # Whoever asks as soon as there is somebody to ask gets a true answer.
        await health.start()
        for each in servers:
            await each.start()
        app.launched.start()
        app.runner.start_keeper()
        app.notices.start()
        guard.start()
        yield bound
    finally:
        async with contextlib.AsyncExitStack() as last:
            # These are done whatever fails before; the lowest one first.
            last.push_async_callback(app.close)
            last.push_async_callback(told.aclose)
            last.callback(store.close)
            last.push_async_callback(_end_calls, servers, health)
            await health.stop()
            await asyncio.sleep(settings.grace_notice_seconds)
            # From now on new calls are refused, while those that run come to their end; growths are
            # left at once, for another server to go on with.
            stopping = [asyncio.ensure_future(each.stop(_LONG)) for each in servers]
            leaving = asyncio.ensure_future(app.runner.close())
            last.push_async_callback(asyncio.wait, [leaving])
            await guard.drain(settings.grace_seconds)
        await asyncio.gather(*stopping, leaving)


async def _end_calls(servers: Sequence[grpc.aio.Server], health: Health) -> None:
    """End what is still open: streams of health and reflection."""
    health.servicer.end_watches()
    await asyncio.gather(*(each.stop(_LAST) for each in servers))


def _admin_server(settings: Settings, health: Health) -> grpc.aio.Server:
    """For operators: channelz tells who is connected, which is nothing for clients."""
    from grpc_channelz.v1 import channelz

    open_to_others = [address for address in settings.admin_listen if not is_local(address)]
    if open_to_others and not settings.insecure:
        raise ValueError(
            f"admin_listen: other machines can connect to {', '.join(open_to_others)} in the "
            "clear: use localhost or a Unix socket, or say --insecure where the network is trusted"
        )
    server = grpc.aio.server(options=options(settings))
    channelz.add_channelz_servicer(server)
    health_pb2_grpc.add_HealthServicer_to_server(health.servicer, server)
    pool = descriptor_pool.Default()
    for file in reflection_files():
        pool.AddSerializedFile(file)
    add_reflection((HEALTH, "grpc.channelz.v1.Channelz"), server, pool)
    return server


def _bind(server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None) -> str:
    if address.startswith("unix:"):
        _clear_socket(address.removeprefix("unix:").removeprefix("//"))
    try:
        # A Unix socket is guarded by its file's permissions, and nobody can listen in.
        if credentials is None or is_socket(address):
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise ValueError(f"cannot listen at {address}: {error}") from None
    if address.startswith("unix:"):
        return address
    return f"{address.rpartition(':')[0]}:{port}"


def _clear_socket(path: str) -> None:
    """Remove a socket that a dead server left.

    Raises:
        ValueError: there is something else, or a server that lives.

    """
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise ValueError(f"cannot listen at unix:{path}: a file is there that is no socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except OSError:
            os.unlink(path)
            return
    raise ValueError(f"cannot listen at unix:{path}: another server does")


async def serve(settings: Settings, *, parent_pid: int | None = None) -> None:
    """Serve until SIGTERM or SIGINT, or until the parent process is gone.

    Another signal after a moment ends the process at once, and so does a stop that takes too long:
    what was acknowledged is committed.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    # Calls wait in threads for the database and for graders; one kind must not hold up the other.
    loop.set_default_executor(ThreadPoolExecutor(THREADS, thread_name_prefix="unmask"))
    told_at = 0.0

    def on_signal() -> None:
        nonlocal told_at
        if not stop.is_set():
            told_at = loop.time()
        elif loop.time() - told_at > TWICE_SECONDS:
            _end_hard("a second signal")
        stop.set()

    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, on_signal)
    tracing.start()
    async with running(settings) as bound:
        log.info("serving", listen=bound, database=without_password(settings.database))
        watcher = asyncio.create_task(_watch_parent(parent_pid, stop)) if parent_pid else None
        await stop.wait()
        log.info("stopping", grace_seconds=settings.grace_seconds)
        # A thread that waits for a database must not keep the process.
        most = settings.grace_notice_seconds + 2.0 * settings.grace_seconds + HARD_SECONDS
        timer = threading.Timer(most, _end_hard, ("stopping took too long",))
        timer.daemon = True
        timer.start()
        if watcher:
            watcher.cancel()
    tracing.stop()
    log.info("stopped")
    # What is left goes with the process; to collect it first takes up to seconds.
    gc.freeze()


def _end_hard(why: str) -> NoReturn:
    log.warning("ended as it is", reason=why)
    os._exit(HARD_STATUS)


async def _watch_parent(pid: int, stop: asyncio.Event) -> None:
    while os.getppid() == pid:  # noqa: ASYNC110 - nothing tells a process that its parent is gone
        await asyncio.sleep(0.5)
    log.info("the parent process is gone")
    stop.set()
