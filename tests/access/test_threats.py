"""The threat model of docs/security.md, held to the tests that it names."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/security.md").read_text()
TESTS = {
    name
    for file in (ROOT / "tests").rglob("test_*.py")
    for name in re.findall(r"^(?:async )?def (test_\w+)", file.read_text(), re.MULTILINE)
}


def test_each_threat_has_a_test_that_is_there() -> None:
    table = PAGE.partition("| Threat |")[2].partition("\n\n")[0]
    rows = [line.strip("|").split("|") for line in table.splitlines()[2:]]
    assert len(rows) > 20
    for threat, against, named in rows:
        assert threat.strip(), named
        assert against.strip(), threat
        names = re.findall(r"`(\w+)`", named)
        assert names, threat
        for name in names:
            assert name in TESTS, f"{threat.strip()}: there is no {name}"


def test_each_setting_of_access_is_explained() -> None:
    from unmask_server.access.settings import AccessSettings

    for name in AccessSettings.model_fields:
        explained = f"`{name}`" in PAGE or (name.startswith("oidc_") and "`oidc_issuer`" in PAGE)
        assert explained, name
