"""The documentation, the dashboard and the alerts name the metrics that there are."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import yaml
from unmask_server.telemetry.table import described, replaced

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/observability.md"
DASHBOARD = ROOT / "deploy/grafana/unmask.json"
ALERTS = ROOT / "deploy/prometheus/alerts.yml"
OTHERS = {"up", "process_resident_memory_bytes", "process_open_fds", "process_cpu_seconds_total"}


def scraped() -> set[str]:
    """Names of all series."""
    names = set(OTHERS)
    for one in described():
        names |= (
            {f"{one.name}{end}" for end in ("_bucket", "_count", "_sum")}
            if one.kind == "histogram"
            else {one.name}
        )
    return names


def expressions(panel: object) -> Iterator[str]:
    if isinstance(panel, dict):
        if isinstance(panel.get("expr"), str):
            yield panel["expr"]
        for value in panel.values():
            yield from expressions(value)
    elif isinstance(panel, list):
        for value in panel:
            yield from expressions(value)


def named(expression: str) -> set[str]:
    without_labels = re.sub(r"\{[^}]*\}|\[[^]]*\]|\bby \([^)]*\)", " ", expression)
    return set(re.findall(r"\b(?:unmask_|grpc_|process_|up\b)\w*", without_labels))


def test_the_page_has_the_table_of_the_code() -> None:
    page = PAGE.read_text()
    assert replaced(page) == page, "run: python -m unmask_server.telemetry.table " + str(PAGE)


def test_the_dashboard_asks_for_metrics_that_there_are() -> None:
    found = list(expressions(json.loads(DASHBOARD.read_text())))
    assert len(found) > 20
    for expression in found:
        assert named(expression), expression
        assert named(expression) <= scraped(), expression


def test_the_alerts_ask_for_metrics_that_there_are() -> None:
    found = list(expressions(yaml.safe_load(ALERTS.read_text())))
    assert len(found) >= 5
    for expression in found:
        assert named(expression), expression
        assert named(expression) <= scraped(), expression
