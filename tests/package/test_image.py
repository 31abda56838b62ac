"""The image is built for real, and its server run, without a container engine: buildah in a chroot.

Everything is below build/image. The base is made of Debian's packages.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import unmask
from unmask.sharing.importing import import_from

pytestmark = [pytest.mark.image, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build/image"
BUILDAH = shlex.split(
    f"buildah --root {FOLDER}/storage --runroot {FOLDER}/run --storage-driver vfs"
)
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
UID = 10001
TOKENS = 40
MODELS = ("student", "teacher-strong")
SAMPLING = ("--temperature", "0.7", "--max-new-tokens", str(TOKENS))


def said(*command: object, **environment: str) -> str:
    """What a command prints on standard output."""
    done = subprocess.run(
        [*map(str, command)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(FOLDER), **environment},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def children(pid: int) -> list[int]:
    """All processes below one."""
    tasks = Path(f"/proc/{pid}/task")
    found = []
    with contextlib.suppress(OSError):
        for task in tasks.iterdir():
            for child in (task / "children").read_text().split():
                found += [int(child), *children(int(child))]
    return found


class Container:
    """A container of the image. What it runs has the image's user, folder and environment."""

    def __init__(self, image: str, settings: dict[str, str]) -> None:
        self.id = said(*BUILDAH, "from", image).strip()
        self.config: dict[str, Any] = json.loads(said(*BUILDAH, "inspect", "--type=image", image))[
            "Docker"
        ]["config"]
        self._options = ["--isolation", "chroot", "--volume", f"{ROOT}/examples/models:/models:ro"]
        for name, value in settings.items():
            self._options += ["--env", f"{name}={value}"]

    def command(self, *arguments: str) -> list[str]:
        return [*BUILDAH, "run", *self._options, self.id, "--", *arguments]

    def run(self, *arguments: str) -> str:
        return said(*self.command(*arguments))

    def health(self) -> subprocess.CompletedProcess[str]:
        """Its health check, as the image says it."""
        kind, *check = self.config["Healthcheck"]["Test"]
        assert kind == "CMD"
        return subprocess.run(self.command(*check), capture_output=True, text=True, check=False)

    @contextlib.contextmanager
    def started(self) -> Iterator[int]:
        """What an engine starts: the entry point with its arguments. Yields the server's pid."""
        command = self.command(*self.config["Entrypoint"], *self.config["Cmd"])
        with open(FOLDER / "server.log", "w") as log:
            process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        try:
            until = time.monotonic() + 120
            while self.health().returncode:
                logged = (FOLDER / "server.log").read_text()
                assert process.poll() is None, logged
                assert time.monotonic() < until, logged
            # The innermost: the others are buildah's.
            pid = children(process.pid)[-1]
            yield pid
            os.kill(pid, self.stop_signal)
            assert process.wait(60) == 0, (FOLDER / "server.log").read_text()
        finally:
            for pid in [*children(process.pid), process.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, 9)
            process.wait()

    @property
    def stop_signal(self) -> int:
        return signal.Signals[self.config["StopSignal"]].value


@pytest.fixture(scope="module")
def image() -> Iterator[str]:
    FOLDER.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(FOLDER / "storage", ignore_errors=True)
    buildah = shlex.join(BUILDAH)
    base, name = "localhost/unmask-base", "localhost/unmask:test"
    said(ROOT / "tools/image/base.sh", base, FOLDER, BUILDAH=buildah)
    # This machine's certificates and uv's cache: it asks for nothing that was asked for already.
    cache = said(sys.executable, ROOT / "tools/uv.py", "cache", "dir").strip()
    Path(cache).mkdir(parents=True, exist_ok=True)
    said(
        ROOT / "tools/image/build.sh", "--isolation", "chroot", "--build-arg", f"BASE={base}",
        "--volume", f"{CERTIFICATES}:{CERTIFICATES}:ro", "--volume", f"{cache}:/root/.cache/uv",
        BUILDER=buildah, IMAGE=name,
    )  # fmt: skip
    yield name
    said(*BUILDAH, "rm", "--all")
    shutil.rmtree(FOLDER / "storage")


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def container(image: str, port: int) -> Container:
    return Container(
        image,
        {
            "UNMASK_LISTEN": f"127.0.0.1:{port},unix:/tmp/unmask.sock",
            "UNMASK_AUTH": "tokens",
            "UNMASK_INSECURE": "true",
        },
    )


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that was filled on a machine with the embedded engine."""
    folder = tmp_path_factory.mktemp("cache")
    ours = [sys.executable, "-m", "unmask"]
    store = ["--database", folder / "unmask.db"]
    student, teacher = (f"examples/models/{name}" for name in MODELS)
    said(
        *ours, "diagnose", "examples/word_problems/questions.jsonl", "--student", student,
        "--teacher", f"strong={teacher}", *SAMPLING, "--verifier", "hash_answer",
        "--max-questions", 1, "--samples", 1, "--max-rollouts", 40, *store,
    )  # fmt: skip
    said(*ours, "export", folder / "export", *store)
    return folder / "export"


def test_it_is_small_and_says_what_it_is(image: str, container: Container) -> None:
    (found,) = json.loads(said(*BUILDAH, "images", "--json", image))
    print(f"\nimage size: {found['size']}")
    labels = container.config["Labels"]
    assert labels["org.opencontainers.image.version"] == unmask.__version__
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert container.run("unmask-server", "--version") == f"unmask-server {unmask.__version__}\n"
    packages = container.run("find", "/opt/unmask", "-name", "site-packages").strip()
    there = container.run("ls", packages).split()
    assert "grpc" in there
    assert not {"torch", "transformers", "nvidia", "pip"} & set(there)
    megabytes = int(container.run("du", "-sm", "/opt/unmask").split()[0])
    assert megabytes < 400


def test_nobody_in_it_is_root_nor_may_change_it(container: Container) -> None:
    assert container.run("id", "-u").strip() == str(UID)
    writable = container.run("find", "/opt/unmask", "/usr", "-writable", "-not", "-type", "l")
    assert writable == ""
    assert container.run("sh", "-c", "touch /data/x && rm /data/x && pwd") == "/data\n"


def test_it_is_not_healthy_before_it_serves(container: Container) -> None:
    assert container.health().returncode == 1


def test_it_refuses_to_be_open_by_an_oversight(container: Container) -> None:
    command = container.command("env", "-u", "UNMASK_INSECURE", "-u", "UNMASK_AUTH",
                                "UNMASK_LISTEN=0.0.0.0:1", "unmask-server", "serve")  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode
    assert "UNMASK_INSECURE" in done.stderr or "--insecure" in done.stderr


def test_it_answers_from_a_cache_that_another_machine_filled(
    container: Container, exported: Path, port: int
) -> None:
    with container.started():
        token = container.run("unmask-server", "token", "create", "me", "--scope", "admin").strip()
        with unmask.Client(f"127.0.0.1:{port}", token=token) as client:
            client.register_questions([{"name": "q1", "question": "3 + 4 = ?", "answer": "7"}])
            import_from(client, exported)
            # Where the models are here; there they were in other folders.
            student, teacher = (f"/models/{name}" for name in MODELS)
            client.register_policy(
                model=student, name="mine", temperature=0.7, max_new_tokens=TOKENS
            )
            client.register_teacher(model=teacher, name="strong", policies=["mine"])
            assert client.statistics().rollouts >= 40
            (trajectory,) = client.list_trajectories()
            answers = list(client.trajectory_alignments(trajectory.id, teachers=["strong"]))
        assert answers
        assert all(answer.alignments for answer in answers)
        with (
            unmask.Client(f"127.0.0.1:{port}") as stranger,
            pytest.raises(unmask.UnauthenticatedError),
        ):
            stranger.statistics()
        assert container.health().returncode == 0
    # The data outlives the server.
    with (
        container.started(),
        unmask.Client(f"127.0.0.1:{port}", token=token) as client,
    ):
        assert client.statistics().rollouts >= 40


def test_it_leaves_nothing_mounted(container: Container) -> None:
    assert str(FOLDER) not in Path("/proc/mounts").read_text()
