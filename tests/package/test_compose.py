"""compose.yaml says what it means: no engine is needed to see that it is whole."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from unmask_server.config import Settings
from unmask_server.configuration.loading import load

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "compose.yaml").read_text()
GIVEN = {"MODELS": "/checkpoints", "POSTGRES_PASSWORD": "secret"}
VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")


def filled(given: dict[str, str]) -> dict[str, Any]:
    """The file as compose reads it with these variables.

    Raises:
        KeyError: one is missing that has to be given.

    """

    def value(found: re.Match[str]) -> str:
        name, kind, other = found.groups()
        return given.get(name) or (other if kind == "-" else given[name])

    return yaml.safe_load(VARIABLE.sub(value, TEXT))


@pytest.fixture
def services() -> dict[str, Any]:
    return filled(GIVEN)["services"]


@pytest.mark.parametrize("name", GIVEN)
def test_what_has_no_default_is_asked_for(name: str) -> None:
    with pytest.raises(KeyError, match=name):
        filled({key: value for key, value in GIVEN.items() if key != name})


def test_every_variable_is_a_setting_with_a_value_that_is_one(
    services: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {name: str(value) for name, value in services["unmask"]["environment"].items()}
    ours = {name for name in environment if name.startswith("UNMASK_")}
    assert ours
    assert {name.removeprefix("UNMASK_").lower() for name in ours} <= Settings.model_fields.keys()
    for name in [name for name in os.environ if name.startswith("UNMASK_")]:
        monkeypatch.delenv(name)
    for name in ours:
        monkeypatch.setenv(name, environment[name].replace("True", "true"))
    assert load({}, "").settings.database == "postgresql://unmask@postgres/unmask"


def test_the_variables_of_the_image_are_settings_too() -> None:
    text = (ROOT / "Dockerfile").read_text()
    ours = {name.lower() for name in re.findall(r"\bUNMASK_([A-Z_]+)=", text)}
    # `address` is the client's, which the image has, too.
    assert ours - {"address"} <= Settings.model_fields.keys()


def test_no_secret_is_in_the_file_or_on_a_command_line(services: dict[str, Any]) -> None:
    for service in services.values():
        assert "secret" not in str(service.get("command", ""))
        for name, value in service.get("environment", {}).items():
            assert "secret" not in str(value) or name in ("PGPASSWORD", "POSTGRES_PASSWORD")


def test_a_service_waits_for_what_it_needs_to_be_healthy(services: dict[str, Any]) -> None:
    assert "HEALTHCHECK" in (ROOT / "Dockerfile").read_text()
    for name, service in services.items():
        assert service.get("healthcheck") or name == "unmask"
        for other, how in service.get("depends_on", {}).items():
            assert other in services
            assert how == {"condition": "service_healthy"}


def test_models_run_only_where_there_are_gpus(services: dict[str, Any]) -> None:
    with_gpu = {name for name, service in services.items() if "deploy" in service}
    assert with_gpu == {
        name for name, service in services.items() if "gpu" in service.get("profiles", [])
    }
    hosts = services["unmask"]["environment"]["UNMASK_ENDPOINT_HOSTS"].split(",")
    assert {host.partition(":")[0] for host in hosts} == with_gpu


def test_volumes_that_are_named_are_declared(services: dict[str, Any]) -> None:
    mounts = [mount for service in services.values() for mount in service.get("volumes", [])]
    named = {mount.partition(":")[0] for mount in mounts if not mount.startswith("/")}
    assert named == filled(GIVEN)["volumes"].keys()


def test_only_this_machine_reaches_a_port_unless_it_is_said(services: dict[str, Any]) -> None:
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert ports == ["127.0.0.1:50051:50051"]


def test_it_gets_the_time_to_finish_that_it_gives_its_calls(services: dict[str, Any]) -> None:
    grace = float(services["unmask"]["environment"]["UNMASK_GRACE_SECONDS"])
    assert float(services["unmask"]["stop_grace_period"].removesuffix("s")) > grace
