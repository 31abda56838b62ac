"""Managed mode: a server of ours is started, watched, started again, and never left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import aiohttp
import psutil
import pytest
from structlog.testing import capture_logs
from unmask_server.engines.sglang.launch import Launch, LaunchError, ManagedSglang, Patience

FAKE = Path(__file__).parent / "fake_sglang.py"
IMPATIENT = Patience(
    start=60.0, stop=0.2, poll=0.02, progress=0.0, first_pause=0.01, longest_pause=0.02
)


def fake(folder: Path, *faults: str, patience: Patience = IMPATIENT, port: int = 0) -> Launch:
    return Launch(
        model="some/model",
        command=(sys.executable, str(FAKE)),
        arguments=("--folder", str(folder), *faults),
        patience=patience,
        port=port,
    )


@asynccontextmanager
async def managed(launch: Launch) -> AsyncIterator[ManagedSglang]:
    async with ManagedSglang(launch) as server:
        yield server
    assert not running(launch)


def running(launch: Launch) -> list[psutil.Process]:
    """The fake's processes that live, by the files it left."""
    folder = Path(launch.arguments[1])
    pids = [int(file.name) for file in folder.iterdir() if file.name.isdigit()]
    return [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]


def starts(folder: Path) -> int:
    return len(list(folder.glob("start-*")))


async def get(server: ManagedSglang, path: str) -> int:
    async with aiohttp.ClientSession() as session, session.get(server.url + path) as answer:
        return answer.status


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - processes and files announce nothing
        await asyncio.sleep(0.01)


async def restarted(server: ManagedSglang, times: int) -> None:
    """Wait until it was started again so often, and is healthy."""
    await until(lambda: server.restarts >= times)
    await server.ready()


async def test_it_is_ready_when_its_health_is_and_says_so_meanwhile(tmp_path: Path) -> None:
    with capture_logs() as logs:
        async with managed(fake(tmp_path, "--unhealthy-probes", "3")) as server:
            assert not server.is_healthy
            await server.ready()
            assert server.is_healthy
            assert await get(server, "/health") == 200
    events = [entry["event"] for entry in logs]
    assert events[0] == "starting SGLang"
    assert events.count("SGLang is starting") >= 3
    assert "SGLang is ready" in events
    assert any("GET /health" in e.get("last_line", "") for e in logs)


async def test_its_log_is_passed_on(tmp_path: Path) -> None:
    shouts = "10%\r20%\r\n\nPrefill batch, #new-seq: 1\n" + "x" * 100_000 + "\nña \n"
    with capture_logs() as logs:
        async with managed(fake(tmp_path, "--shouts", shouts)) as server:
            await server.ready()
    said = [(e["log_level"], e["event"]) for e in logs if len(e) == 3]
    assert said[:3] == [("info", "10%"), ("info", "20%"), ("debug", "Prefill batch, #new-seq: 1")]
    assert said[3] == ("info", "x" * 4096)
    assert said[4] == ("info", "ña")
    assert all(e["model"] == "model" for e in logs)


async def test_a_dead_one_is_started_again_at_its_address(tmp_path: Path) -> None:
    async with managed(fake(tmp_path, "--workers", "1")) as server:
        await server.ready()
        url, first = server.url, {p.pid for p in running(server.launch)}
        with capture_logs() as logs:
            await get(server, "/die")
            await restarted(server, 1)
        assert server.url == url
        assert await get(server, "/health") == 200
        assert starts(tmp_path) == 2
        assert not first & {p.pid for p in running(server.launch)}
    (death,) = [e for e in logs if e["event"] == "SGLang died"]
    assert death["how"] == "exited with status 3"
    assert death["last_lines"][-1] == "an illegal token id"


async def test_one_that_fails_to_start_is_tried_again(tmp_path: Path) -> None:
    async with managed(fake(tmp_path, "--dies-at-start", "2")) as server:
        await server.ready()
        assert server.restarts == 2


async def test_one_that_never_starts_is_given_up_with_its_last_lines(tmp_path: Path) -> None:
    async with managed(fake(tmp_path, "--dies-at-start", "99")) as server:
        for _ in range(2):
            with pytest.raises(LaunchError, match=r"(?s)status 1, 3 times in a row.*out of memory"):
                await server.ready()
        assert starts(tmp_path) == 3
        assert server.pid is None


async def test_one_that_dies_as_soon_as_it_is_healthy_is_given_up_later(tmp_path: Path) -> None:
    patience = Patience(poll=0.02, first_pause=0.0, failed_starts=1, quick_deaths=2)
    async with managed(fake(tmp_path, patience=patience)) as server:
        await server.ready()
        await get(server, "/die")
        await restarted(server, 1)
        await get(server, "/die")
        await until(lambda: not server.is_healthy)
        with pytest.raises(LaunchError, match=r"(?s)status 3, 2 times.*an illegal token id"):
            await server.ready()


async def test_one_that_is_not_healthy_in_time_is_given_up(tmp_path: Path) -> None:
    patience = Patience(start=0.0, stop=0.2, poll=0.02, failed_starts=1)
    launch = fake(tmp_path, "--unhealthy-probes", "-1", "--workers", "1", patience=patience)
    async with managed(launch) as server:
        with pytest.raises(LaunchError, match="was not healthy in time"):
            await server.ready()


async def test_it_is_not_started_again_on_another_checkpoint(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"one")
    launch = replace(fake(tmp_path), model=str(model))
    async with managed(launch) as server:
        await server.ready()
        (model / "model.safetensors").write_bytes(b"another")
        await get(server, "/die")
        await until(lambda: not server.is_healthy)
        with pytest.raises(LaunchError, match="have changed"):
            await server.ready()
    assert starts(tmp_path) == 1


async def test_what_is_no_program_is_told_at_once() -> None:
    with pytest.raises(LaunchError, match="there is no program 'no-such-python'"):
        async with ManagedSglang(Launch("m", command=("no-such-python", "-m", "sglang"))):
            pass


async def test_a_module_that_is_missing_is_told(tmp_path: Path) -> None:
    command = (sys.executable, "-m", "no_such_sglang")
    async with ManagedSglang(Launch("m", command, patience=IMPATIENT)) as server:
        with pytest.raises(LaunchError, match="No module named no_such_sglang"):
            await server.ready()


async def test_closing_leaves_nothing_however_stubborn(tmp_path: Path) -> None:
    launch = fake(tmp_path, "--stubborn", "--workers", "3")
    async with managed(launch) as server:
        await server.ready()
        assert len(running(launch)) == 4


async def test_closing_while_it_starts_leaves_nothing(tmp_path: Path) -> None:
    launch = fake(tmp_path, "--unhealthy-probes", "-1", "--workers", "1")
    async with managed(launch) as server:
        waiting = asyncio.create_task(server.ready())
        await until(lambda: len(running(launch)) == 2)
    with pytest.raises(LaunchError, match="stopped"):
        await waiting


async def test_two_have_ports_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    async with managed(fake(tmp_path / "a")) as a, managed(fake(tmp_path / "b")) as b:
        await asyncio.gather(a.ready(), b.ready())
        assert a.url != b.url
        assert (await get(a, "/health"), await get(b, "/health")) == (200, 200)


PARENT = """
import asyncio, sys
from unmask_server.engines.sglang.launch import Launch, ManagedSglang

async def main():
    launch = Launch("m", (sys.executable, sys.argv[1]), ("--folder", *sys.argv[2:]))
    async with ManagedSglang(launch) as server:
        await server.ready()
        print(server.pid, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@asynccontextmanager
async def parent(folder: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """A process that manages a stubborn server, and the supervisor's pid."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PARENT, str(FAKE), str(folder), "--stubborn", "--workers", "2"),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        while not (line := await process.stdout.readline()).strip().isdigit():
            assert line
        yield process, int(line)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def gone(processes: list[psutil.Process]) -> bool:
    _, alive = await asyncio.to_thread(psutil.wait_procs, processes, 60)
    return not alive


async def test_kill_9_of_the_parent_leaves_nothing(tmp_path: Path) -> None:
    async with parent(tmp_path) as (process, supervisor):
        processes = [*running(fake(tmp_path)), psutil.Process(supervisor)]
        assert len(processes) == 4
        process.kill()
        assert await gone(processes)


async def test_kill_9_of_the_parent_leaves_nothing_even_if_its_pipe_lives_on(
    tmp_path: Path,
) -> None:
    async with parent(tmp_path) as (process, supervisor):
        processes = [*running(fake(tmp_path)), psutil.Process(supervisor)]
        lifeline = os.open(f"/proc/{supervisor}/fd/0", os.O_RDWR | os.O_NONBLOCK)
        try:
            process.kill()
            assert await gone(processes)
        finally:
            os.close(lifeline)


async def test_kill_9_of_the_supervisor_is_a_death_like_any_other(tmp_path: Path) -> None:
    async with managed(fake(tmp_path)) as server:
        await server.ready()
        first = running(server.launch)
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        await restarted(server, 1)
        assert await gone(first)
