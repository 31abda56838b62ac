"""Where an embedded server lives, and what is said if there can be none."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest
import unmask
from unmask import embedded


def test_one_database_has_one_socket_however_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {
        embedded._places(name)
        for name in ("a.db", Path("./x/../a.db"), tmp_path / "a.db", f"sqlite:///{tmp_path}/a.db")
    }
    assert len(places) == 1
    ((url, log, socket),) = places
    assert url == f"sqlite:///{tmp_path}/a.db"
    assert log == tmp_path / "a.db.log"
    assert len(str(socket)) <= 107
    assert socket.parent.stat().st_mode & 0o077 == 0
    assert embedded._places("b.db")[2] != socket
    assert embedded._places("postgresql://host/db")[0] == "postgresql://host/db"
    assert embedded._places(None)[0] == f"sqlite:///{tmp_path}/.unmask/unmask.db"


def test_a_folder_that_others_can_open_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/tmp")
    monkeypatch.setattr(os, "getuid", lambda: 987654321)
    folder = Path("/tmp/unmask-987654321")
    folder.mkdir(mode=0o700)
    try:
        with pytest.raises(RuntimeError, match="is open to other users"):
            embedded._runtime_folder()
    finally:
        folder.rmdir()


def test_without_the_server_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec

    def find(name: str, package: str | None = None) -> Any:
        return None if name == "sqlalchemy" else real(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    with pytest.raises(
        ImportError, match=r"needs sqlalchemy: pip install 'unmask\[transformers\]'"
    ):
        unmask.serve(tmp_path / "x.db")
