"""What the README says is what happens."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"


@pytest.mark.slow
def test_the_example_in_python_runs_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "path" / "to").mkdir(parents=True)
    (tmp_path / "path" / "to" / "student").symlink_to(ROOT / "examples" / "models" / "student")
    monkeypatch.chdir(tmp_path)
    exec(compile(example, str(README), "exec"), {})
    scored = capsys.readouterr().out.splitlines()
    assert scored
    for line in scored:
        median, low, high = map(float, line.split()[-3:])
        assert -1 <= low <= median <= high <= 1
