"""Each thing that can be wrong with a set-up is found, and it is said what to do."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from sqlalchemy import insert, text
from typer.testing import CliRunner
from unmask_server.cli import app
from unmask_server.config import Settings
from unmask_server.configuration import loading
from unmask_server.database.connect import open_database, write
from unmask_server.database.migrate import migrate
from unmask_server.database.schema import model
from unmask_server.doctor import installed, models, settings, store
from unmask_server.doctor.finding import Level

from tests.access.making import Authority
from tests.chaos.model import make_model
from tests.sglang.stand_in import StandIn
from tests.stores import new_database

Found = list[dict[str, str]]
Doctor = Callable[..., Found]


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without the settings of whoever runs the tests, and away from their databases."""
    monkeypatch.setattr(loading, "default_files", lambda: (tmp_path / "none",))
    for name in ("CONFIG", *map(str.upper, Settings.model_fields)):
        monkeypatch.delenv(f"UNMASK_{name}", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def url(sqlite_template: Path, tmp_path: Path) -> str:
    """A migrated database."""
    file = tmp_path / "unmask.db"
    shutil.copy(sqlite_template, file)
    database = open_database(f"sqlite:///{file}")
    with write(database) as connection:
        # The catalog of other tests names models that are nowhere.
        for table in ("question", "policy", "verifier", "model"):
            connection.execute(text(f"DELETE FROM {table}"))
    database.dispose()
    return f"sqlite:///{file}"


@pytest.fixture
def doctor(url: str) -> Doctor:
    """Run the command; return what it found of one subject, or all."""

    def run(*flags: str | Path, code: int = 0, of: str = "", database: str = url) -> Found:
        listen = () if "--listen" in flags else ("--listen", "localhost:0")
        arguments = ("doctor", "--json", "--database", database, *listen, *flags)
        result = CliRunner().invoke(app, list(map(str, arguments)))
        assert result.exit_code == code, result.output
        found: Found = json.loads(result.stdout)
        return [one for one in found if one["subject"] == of] if of else found

    return run


def register(url: str, **values: Any) -> None:
    row = {
        "fingerprint": "m", "source": "/models/m", "architecture": "none", "vocab_size": 8,
        "max_context": 100, "tokenizer_fingerprint": "t", "eos_ids": [0], "created_at": 0.0,
    }  # fmt: skip
    database = open_database(url)
    with write(database) as connection:
        connection.execute(insert(model), row | values)
    database.dispose()


def only(found: Found, level: str) -> dict[str, str]:
    """The one finding, which must be of a level and, if it is bad, say what to do."""
    (one,) = found
    assert one["level"] == level, one
    assert bool(one["todo"]) is (level != "ok")
    return one


def test_a_good_set_up_has_no_problems(doctor: Doctor) -> None:
    found = doctor()
    assert {one["level"] for one in found} <= {"ok", "warning"}
    subjects = {one["subject"] for one in found}
    assert {"unmask", "database", "schema", "clock", "journal", "disk", "listen"} <= subjects


def test_it_is_told_in_lines_too(url: str) -> None:
    arguments = ["doctor", "--database", url, "--listen", "localhost:99999"]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 1
    lines = result.output.splitlines()
    (at,) = [i for i, line in enumerate(lines) if line.startswith("✗")]
    assert lines[at] == "✗ listen        localhost:99999 has no port"
    assert lines[at + 1].strip() == "→ write HOST:PORT, as localhost:50051"


# ------------------------------------------------------------------------------ the database


def test_a_database_that_is_not_there_yet(doctor: Doctor, tmp_path: Path) -> None:
    new = tmp_path / "new" / "unmask.db"
    assert (
        "not there yet"
        in only(doctor(of="database", database=f"sqlite:///{new}"), "warning")["found"]
    )
    assert not new.parent.exists()


@pytest.mark.parametrize(
    ("database", "todo"),
    [
        ("postgresql://ann:hidden@127.0.0.1:1/unmask", "start it, or correct the setting"),
        ("mysql://h/d", "correct the setting"),
        ("unmask.db", "write sqlite:///PATH"),
    ],
)
def test_a_database_that_cannot_be_reached(doctor: Doctor, database: str, todo: str) -> None:
    found = doctor(of="database", database=database, code=1)
    assert todo in only(found, "problem")["todo"]
    assert "hidden" not in str(found)


def test_a_database_at_another_revision(doctor: Doctor, url: str, tmp_path: Path) -> None:
    old = f"sqlite:///{tmp_path / 'old.db'}"
    migrate(old, "0003")
    found = only(doctor(of="schema", database=old, code=1), "problem")
    assert "unmask-server migrate" in found["todo"]
    database = open_database(url)
    with write(database) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    database.dispose()
    assert "install" in only(doctor(of="schema", code=1), "problem")["todo"]


def test_postgresql(doctor: Doctor, postgresql_url: str) -> None:
    url = new_database(postgresql_url)
    migrate(url)
    found = doctor("--database-pool", "2", database=url)
    assert {"database", "schema", "clock", "connections"} <= {one["subject"] for one in found}
    many = doctor("--database-pool", "900", of="connections", database=url)
    only(many, "warning")


def test_a_clock_that_is_wrong(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    right = store.time.time
    monkeypatch.setattr(store.time, "time", lambda: right() - 100.0)
    assert "100.0 s behind" in only(doctor(of="clock"), "warning")["found"]


@pytest.mark.parametrize(("free", "level"), [(10, "problem"), (2**29, "warning")])
def test_a_disk_that_is_full(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch, free: int, level: str
) -> None:
    monkeypatch.setattr(store.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, free))
    only(doctor(of="disk", code=int(level == "problem")), level)


def test_a_file_that_cannot_be_written(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store.os, "access", lambda *_: False)
    assert "cannot be written" in only(doctor(of="database", code=1), "problem")["found"]


# --------------------------------------------------------------------- settings and addresses


def test_a_port_that_is_taken(doctor: Doctor) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        assert (
            "ss -ltnp" in only(doctor("--listen", address, of="listen", code=1), "problem")["todo"]
        )
    only(doctor("--listen", address, of="listen"), "ok")


@pytest.mark.parametrize(
    ("listen", "found"),
    [
        ("localhost", "has no port"),
        ("unix:{}/file", "is no socket"),
        ("unix:{}/none/socket", "cannot be written"),
        ("0.0.0.0:0", "other machines can connect"),
    ],
)
def test_an_address_that_is_none(doctor: Doctor, tmp_path: Path, listen: str, found: str) -> None:
    (tmp_path / "file").touch()
    seen = doctor("--listen", listen.format(tmp_path), of="listen", code=1)
    assert any(found in one["found"] and one["todo"] for one in seen), seen


def test_a_variable_that_nothing_reads(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNMASK_MAX_BACH", "3")
    found = only(doctor(of="environment"), "warning")
    assert "UNMASK_MAX_BACH" in found["found"]
    assert "'max_batch'" in found["todo"]


def test_variables_of_the_client_are_read(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CLIENT_CERT", "CLIENT_KEY"):
        monkeypatch.setenv(f"UNMASK_{name}", "file.pem")
    assert doctor(of="environment") == []


def test_what_the_client_reads_is_known(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Path(str(files("unmask")))
    text = "".join(file.read_text() for file in client.rglob("*.py"))
    names = set(re.findall(r"\bUNMASK_[A-Z_]*[A-Z]\b", text))
    assert names >= settings.OTHERS
    assert names - settings.OTHERS <= {loading.variable(name) for name in Settings.model_fields}
    monkeypatch.setenv("UNMASK_TOKEN_FILE", "token")
    assert not doctor(of="environment")


def test_a_file_with_secrets_that_others_can_read(doctor: Doctor, tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text('sglang_command = "python --api-key hidden"\n')
    file.chmod(0o644)
    found = only(doctor("--config", file, of="settings"), "warning")
    assert found["todo"] == f"chmod 600 {file}"
    file.chmod(0o600)
    only(doctor("--config", file, of="settings"), "ok")


@pytest.mark.parametrize(("days", "level"), [(90, "ok"), (5, "warning"), (-1, "problem")])
def test_certificates_expire(
    doctor: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, days: int, level: str
) -> None:
    cert, key = Authority(tmp_path / "ca").issue("server")
    key.chmod(0o600)
    ends = x509.load_pem_x509_certificate(cert.read_bytes()).not_valid_after_utc.timestamp()
    monkeypatch.setattr(settings.time, "time", lambda: ends - 86_400.0 * days)
    only(doctor(*tls(cert, key), of="tls", code=int(level == "problem")), level)


def test_certificates_that_cannot_be_used(doctor: Doctor, tmp_path: Path) -> None:
    cert, key = Authority(tmp_path / "ca").issue("server")
    only(doctor(*tls(cert, tmp_path / "none"), of="tls", code=1), "problem")
    only(doctor(*tls(cert, cert), of="tls", code=1), "problem")
    key.chmod(0o644)
    found = doctor(*tls(cert, key), of="tls")
    assert f"chmod 600 {key}" in [one["todo"] for one in found]


def tls(cert: Path, key: Path) -> tuple[str | Path, ...]:
    return "--tls-cert", cert, "--tls-key", key


# ------------------------------------------------------------------------------------ models


def test_models_whose_directories_are_not_as_they_were(
    doctor: Doctor, url: str, tmp_path: Path
) -> None:
    folder = make_model(tmp_path / "model")
    register(url, source=str(folder))
    only(doctor(of="model"), "ok")
    (folder / "model.safetensors").unlink()
    assert "safetensors" in only(doctor(of="model", code=1), "problem")["found"]
    (folder / "tokenizer.json").unlink()
    assert "tokenizer.json" in only(doctor(of="model", code=1), "problem")["found"]
    shutil.rmtree(folder)
    assert "is gone" in only(doctor(of="model", code=1), "problem")["found"]


def test_an_engine_that_is_needed_and_not_installed(
    doctor: Doctor, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = installed.metadata.version

    def without_torch(name: str) -> str:
        if name == "torch":
            raise installed.metadata.PackageNotFoundError(name)
        return "5.0.0" if name == "transformers" else version(name)

    monkeypatch.setattr(installed.metadata, "version", without_torch)
    assert "not needed" in only(doctor(of="transformers"), "ok")["found"]
    register(url, source=str(make_model(tmp_path / "model")))
    found = only(doctor(of="transformers", code=1), "problem")
    assert "torch is not installed; transformers is 5.0.0, not " in found["found"]
    assert "pip install 'unmask[transformers]'" in found["todo"]


async def test_sglang_servers(url: str) -> None:
    async with StandIn().running() as sglang:
        register(url, endpoints=[sglang.url], serving={"weight_version": "default"})

        async def look() -> list[tuple[Level, str]]:
            options = Settings(database=url)
            known = await asyncio.to_thread(models.registered, options)
            found = [one async for one in models.endpoints(options, known)]
            assert all(bool(one.todo) is (one.level is not Level.OK) for one in found)
            return [(one.level, one.found) for one in found]

        ((level, said),) = await look()
        assert (level, "SGLang 0.5.20" in said) == (Level.OK, True)
        sglang.version, sglang.has_radix_cache, sglang.weight_version = "0.5.3", False, "new"
        old, cold, changed = await look()
        assert (old[0], cold[0], changed[0]) == (Level.PROBLEM, Level.WARNING, Level.PROBLEM)
        assert "0.5.3" in old[1]
        assert "--disable-radix-cache" in cold[1]
        assert "'new', not 'default'" in changed[1]
        sglang.is_starting = True
        assert [level for level, _ in await look()] == [Level.PROBLEM]
    assert [level for level, _ in await look()] == [Level.PROBLEM]


def test_launches_that_cannot_be(doctor: Doctor, tmp_path: Path) -> None:
    launch = ("--sglang-launch", f"{tmp_path}/none --tp 2", "--sglang-command", "no-program -m x")
    found = doctor(*launch, code=1)
    told = {one["subject"]: one for one in found if one["level"] == "problem"}
    assert "'no-program'" in told["sglang_command"]["found"]
    assert "is no model directory" in told["sglang_launch"]["found"]


# --------------------------------------------------------------------------------- the machine


def test_few_files_and_little_memory(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed.resource, "getrlimit", lambda _: (256, 1_000_000))
    monkeypatch.setattr(installed, "free_memory", lambda: 100 * 2**20)
    found = doctor()
    assert (
        "ulimit -n"
        in only([one for one in found if one["subject"] == "open files"], "warning")["todo"]
    )
    assert (
        "max_engines"
        in only([one for one in found if one["subject"] == "memory"], "warning")["todo"]
    )


def test_memory_is_known_here() -> None:
    free = installed.free_memory()
    assert free is None or free > 0


@pytest.mark.parametrize(
    ("version", "wanted", "is_in"),
    [
        ("2.13.0+cpu", ">=2.8,<3", True),
        ("2.7.1", "<3,>=2.8", False),
        ("3.0", ">=2.8,<3", False),
        ("0.9.0", "==0.9.0", True),
        ("26.1.0", ">=25.1", True),
        ("5.5.0rc1", ">=5.5", True),
        ("1.0", "", True),
    ],
)
def test_versions_are_compared_by_number(version: str, wanted: str, is_in: bool) -> None:
    assert installed._is_in(version, wanted) is is_in


def test_a_check_that_fails_is_a_problem_and_no_end(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> Iterator[Any]:
        raise OSError("a strange disk")
        yield

    monkeypatch.setattr(installed, "files", fails)
    found = doctor(code=1)
    assert (
        "a strange disk"
        in only([o for o in found if o["subject"] == "open files"], "problem")["found"]
    )
    assert found[-1]["subject"] == "memory"
