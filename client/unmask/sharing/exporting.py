"""A cache, written to a folder: tables in parts, and a manifest that says how far it is.

A part is complete when the manifest lists it; what a crash leaves beside is written anew.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from unmask.client import Client
from unmask.errors import UnavailableError
from unmask.objectives import Terms
from unmask.requests.cache import ExportKindName
from unmask.requests.refs import Ref, ref, refs
from unmask.sharing.columns import TABLES
from unmask.sharing.files import Format, Writer, open_writer
from unmask.v1 import sharing_pb2 as pb

MANIFEST = "export.json"
VERSION = 1
"""Of the files' layout."""
PART_BYTES = 32 * 2**20
"""What has come since the manifest was written, before it is written again."""
_TRIES = 5
_WAIT = 2.0

Progress = Callable[[dict[str, int]], None]
"""Told the rows of each table so far."""


def export_to(
    client: Client,
    folder: str | os.PathLike[str],
    kinds: Iterable[ExportKindName] = (),
    *,
    format: Format = "jsonl",
    policy: Ref = "",
    questions: Ref | Iterable[Ref] = (),
    teachers: Ref | Iterable[Ref] = (),
    verifier: Ref = "",
    objective: Terms = (),
    top_k: int = 0,
    on_progress: Progress = lambda rows: None,
) -> dict[str, int]:
    """Write what a server stores to a folder. One that was cut off is continued.

    Args:
        client: the server's.
        folder: a new one, or that of the same export, unfinished.
        kinds: see `Client.export_cache`.
        format: of the files; `parquet` needs pyarrow.
        policy: only of this one.
        questions: only of these.
        teachers: for estimates.
        verifier: likewise.
        objective: likewise.
        top_k: likewise.
        on_progress: called now and then.

    Returns:
        Rows by table.

    Raises:
        UnmaskError: the server refuses, or cannot be reached in several tries.
        ValueError: the folder holds another export, or something else.
        OSError: it cannot be written.

    """
    chosen, named, shown = sorted(kinds), refs(questions), refs(teachers)
    wanted = {
        "kinds": chosen,
        "policy": ref(policy),
        "questions": named,
        "teachers": shown,
        "verifier": ref(verifier),
        "objective": str(objective or ""),
        "top_k": top_k,
    }
    out = _Folder(Path(folder), format, wanted)
    tries = 0
    while not out.complete:
        try:
            stream = client.export_cache(
                chosen,
                policy=policy,
                questions=named,
                teachers=shown,
                verifier=verifier,
                objective=objective,
                top_k=top_k,
                cursor=out.cursor,
            )
            for part in stream:
                tries = 0
                out.add(part)
                on_progress(out.rows)
            out.finish()
        except UnavailableError:
            tries += 1
            if tries == _TRIES:
                raise
            time.sleep(_WAIT)
        finally:
            out.abandon()
    return out.rows


class _Folder:
    """An export on disk."""

    def __init__(self, folder: Path, format: Format, wanted: dict[str, Any]) -> None:
        self._folder = folder
        self._format = format
        self._open: dict[str, tuple[Writer, str]] = {}
        self._pending: dict[str, int] = {}
        self._bytes = 0
        folder.mkdir(parents=True, exist_ok=True)
        self._manifest: dict[str, Any] = {
            "unmask_export": VERSION, "format": format, "wanted": wanted, "complete": False,
            "cursor": "", "parts": [],
        }  # fmt: skip
        file = folder / MANIFEST
        if file.exists():
            there = read_manifest(folder)
            if (there["format"], there["wanted"]) != (format, wanted):
                raise ValueError(f"{folder} holds another export; choose another folder")
            self._manifest = there
        elif any(folder.iterdir()):
            raise ValueError(f"{folder} is not empty, and holds no export")
        self.cursor: str = self._manifest["cursor"]
        self._write_manifest()

    @property
    def complete(self) -> bool:
        """Whether nothing is missing."""
        return bool(self._manifest["complete"])

    @property
    def rows(self) -> dict[str, int]:
        """Rows by table, those that are not listed yet included."""
        found = dict(self._pending)
        for part in self._manifest["parts"]:
            found[part["table"]] = found.get(part["table"], 0) + part["rows"]
        return found

    def add(self, part: pb.ExportCacheResponse) -> None:
        """Write a part of the stream."""
        for name, table in TABLES.items():
            rows = [row for one in getattr(part.records, name) for row in table.rows(one)]
            if rows:
                self._writer(name).write(rows)
                self._pending[name] = self._pending.get(name, 0) + len(rows)
        self.cursor = part.cursor
        self._bytes += part.ByteSize()
        if self._bytes >= PART_BYTES:
            self._commit()

    def finish(self) -> None:
        """The stream has ended."""
        self._manifest["complete"] = True
        self._commit()

    def abandon(self) -> None:
        """Forget what the manifest does not list, so that it is asked for again."""
        for writer, name in self._open.values():
            writer.close()
            (self._folder / name).unlink(missing_ok=True)
        self._open.clear()
        self._pending.clear()
        self._bytes = 0
        self.cursor = self._manifest["cursor"]

    def _writer(self, table: str) -> Writer:
        if table not in self._open:
            number = sum(part["table"] == table for part in self._manifest["parts"])
            name = f"{table}-{number:05d}.{self._format}"
            columns = TABLES[table].columns
            self._open[table] = open_writer(self._folder / name, self._format, columns), name
        return self._open[table][0]

    def _commit(self) -> None:
        # In the order of the tables, which is that in which they refer to each other.
        for table in TABLES:
            if table in self._open:
                writer, name = self._open.pop(table)
                writer.close()
                _sync(self._folder / name)
                self._manifest["parts"].append(
                    {"file": name, "table": table, "rows": self._pending.pop(table)}
                )
        self._manifest["cursor"] = self.cursor
        self._bytes = 0
        self._write_manifest()

    def _write_manifest(self) -> None:
        temporary = self._folder / f".{MANIFEST}"
        temporary.write_text(json.dumps(self._manifest, indent=1), encoding="utf-8")
        _sync(temporary)
        temporary.replace(self._folder / MANIFEST)


def read_manifest(folder: Path) -> dict[str, Any]:
    """What a folder says that it holds.

    Raises:
        OSError: it has no manifest.
        ValueError: it is none of this version.

    """
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        version = found["unmask_export"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{folder / MANIFEST} is no manifest of an export") from None
    if version != VERSION:
        raise ValueError(f"{folder} is an export of version {version}, not {VERSION}")
    return dict(found)


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
