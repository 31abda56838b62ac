"""Settings by flag, environment and file: who goes first, and what a mistake is told as."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from pydantic import SecretStr
from typer.testing import CliRunner
from unmask_server.cli import app
from unmask_server.config import Settings
from unmask_server.configuration import loading
from unmask_server.configuration.groups import OTHER, group_of
from unmask_server.configuration.loading import load
from unmask_server.configuration.show import example, masked


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without the settings of whoever runs the tests."""
    monkeypatch.setattr(loading, "default_files", lambda: (tmp_path / "none",))
    for name in ("CONFIG", *map(str.upper, Settings.model_fields)):
        monkeypatch.delenv(f"UNMASK_{name}", raising=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "server.toml"


def run(*arguments: str | Path, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return result.output


def test_flags_go_before_the_environment_and_that_before_the_file(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text('max_batch = 1\nmax_engines = 1\nthreads = 1\nlisten = ["a:1", "b:2"]\n')
    monkeypatch.setenv("UNMASK_MAX_BATCH", "2")
    monkeypatch.setenv("UNMASK_MAX_ENGINES", "2")
    loaded = load({"max_batch": "3", "dtype": None}, str(file))
    settings = loaded.settings
    assert (settings.max_batch, settings.max_engines, settings.threads) == (3, 2, 1)
    assert settings.listen == ["a:1", "b:2"]
    assert settings.dtype == "float32"
    assert {name: loaded.sources[name] for name in ("max_batch", "max_engines", "threads")} == {
        "max_batch": "flag --max-batch",
        "max_engines": "environment UNMASK_MAX_ENGINES",
        "threads": f"file {file}",
    }
    assert loaded.sources["dtype"] == "default"


def test_a_file_is_named_found_or_left_alone(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("max_batch = 7\n")
    assert load().file is None
    monkeypatch.setattr(loading, "default_files", lambda: (file,))
    assert load().settings.max_batch == 7
    other = file.with_name("other.toml")
    other.write_text("max_batch = 8\n")
    monkeypatch.setenv("UNMASK_CONFIG", str(other))
    assert load().settings.max_batch == 8
    assert load(config=str(file)).settings.max_batch == 7
    assert load(config="").file is None
    with pytest.raises(FileNotFoundError):
        load(config=str(file.with_name("missing.toml")))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("max_bach = 3", "server.toml: there is no setting 'max_bach'; did you mean 'max_batch'?"),
        ("Max-Batch = 3", "did you mean 'max_batch'?"),
        ("qqq = 3", "there is no setting 'qqq'; `unmask-server config` lists them"),
        ("max_batch = 0", "max_batch (file "),
        ('max_batch = "many"', "should be a valid integer"),
        ("max_batch = [", "server.toml: no TOML: "),
    ],
)
def test_a_mistake_in_the_file_is_named(file: Path, text: str, said: str) -> None:
    file.write_text(text)
    output = run("config", "--config", file, code=2)
    assert said in output
    assert len(output.strip().splitlines()) == 1


def test_a_mistake_says_where_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNMASK_THREADS", "none")
    assert "threads (environment UNMASK_THREADS): " in run("config", code=2)
    said = run("config", "--threads", "0", "--dtype", "int4", code=2)
    assert "threads (flag --threads): " in said
    assert "dtype (flag --dtype): " in said


def test_every_setting_is_a_flag() -> None:
    said = run("serve", "--help")
    for name in Settings.model_fields:
        assert f"--{name.replace('_', '-')} " in said
    found = json.loads(
        run("config", "--json", "--listen", "a:1", "--listen", "unix:b", "--lease-seconds", "9")
    )["settings"]
    assert found["listen"] == {"value": ["a:1", "unix:b"], "source": "flag --listen"}
    assert found["lease_seconds"] == {"value": 9.0, "source": "flag --lease-seconds"}
    assert set(found) == set(Settings.model_fields)


def test_the_table_says_whence(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text('database = "postgresql://ann:word@host/unmask"\n')
    monkeypatch.setenv("UNMASK_SGLANG_LAUNCH", "model --api-key hidden --tp 2")
    said = run("config", "--config", file, "--max-batch", "5")
    assert "postgresql://ann:***@host/unmask" in said
    assert "model --api-key *** --tp 2" in said
    assert "word" not in said
    assert "hidden" not in said
    assert [line.split() for line in said.splitlines() if "max_batch" in line] == [
        ["max_batch", "5", "flag", "--max-batch"]
    ]


@pytest.mark.parametrize(
    ("value", "seen"),
    [
        (SecretStr("abc"), "***"),
        (SecretStr(""), ""),
        ("postgresql://:word@h/d?sslpassword=x&a=b", "postgresql://:***@h/d?sslpassword=***&a=b"),
        (["a --token=1", {"k": "http://u:p@h"}], ["a --token=***", {"k": "http://u:***@h"}]),
        (1.5, 1.5),
        (None, None),
    ],
)
def test_secrets_are_masked(value: object, seen: object) -> None:
    assert masked(value) == seen


def test_the_example_is_the_defaults(file: Path) -> None:
    file.write_text(example())
    assert load(config=str(file)).settings.model_dump() == load().settings.model_dump()
    lines = []
    for line in example().splitlines():
        key, is_setting, value = line.removeprefix("# ").partition(" = ")
        if is_setting and key in Settings.model_fields and "# not set" not in value:
            lines.append(f"{key} = {value}")
    file.write_text("\n".join(lines))
    loaded = load(config=str(file))
    assert loaded.settings.model_dump() == load().settings.model_dump()
    assert len(lines) > len(Settings.model_fields) / 2


def test_every_command_that_opens_the_database_reads_the_file(file: Path, tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path / 'there.db'}"
    file.write_text(f'database = "{database}"\n')
    assert f"{database} is at head" in run("migrate", "--config", file)
    assert (tmp_path / "there.db").exists()
    run("fsck", "--config", file)


def test_the_version_is_told() -> None:
    assert run("--version").startswith("unmask-server 0")


def test_every_setting_is_described_and_has_its_place() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert group_of(name) != OTHER, name


def test_the_operators_guide_names_settings_that_there_are() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    named = set(re.findall(r"`([a-z]+(?:_[a-z]+)+)`", guide))
    assert named - {"pg_dump"} <= set(Settings.model_fields)
    assert {"client_calls", "grace_seconds", "admin_listen"} <= named
