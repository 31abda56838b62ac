"""A folder that `export_to` wrote, merged into a cache."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unmask.client import Client
from unmask.sharing.columns import TABLES, Table
from unmask.sharing.exporting import read_manifest
from unmask.sharing.files import read_rows
from unmask.v1 import sharing_pb2 as pb

BATCH_RECORDS = 1000
BATCH_BYTES = 2 * 2**20
"""Of one call, about."""


@dataclass
class Imported:
    """What an import did: sums of ImportCacheResponse."""

    counts: dict[str, int] = field(default_factory=dict)
    """By field, e.g. `rollouts_added`."""
    warnings: list[str] = field(default_factory=list)
    """Each once."""
    complete: bool = True
    """Whether the export was."""

    def add(self, done: pb.ImportCacheResponse) -> None:
        """Count one call."""
        for descriptor, value in done.ListFields():
            if descriptor.name == "warnings":
                self.warnings += [text for text in value if text not in self.warnings]
            else:
                self.counts[descriptor.name] = self.counts.get(descriptor.name, 0) + value


def import_from(
    client: Client,
    folder: str | os.PathLike[str],
    on_progress: Callable[[Imported], None] = lambda imported: None,
) -> Imported:
    """Merge an export into a server's cache. Again, or after a failure, nothing counts twice.

    Args:
        client: the server's.
        folder: that `export_to` wrote; an unfinished one gives what it has.
        on_progress: called now and then.

    Raises:
        UnmaskError: the server refuses.
        OSError: the folder cannot be read.
        ValueError: it is no export.

    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    result = Imported(complete=bool(manifest["complete"]))
    for part in manifest["parts"]:
        table = TABLES[part["table"]]
        if table.message is None:
            continue
        for records in _batches(folder / part["file"], table):
            result.add(client.import_cache(records))
            on_progress(result)
    return result


def _batches(path: Path, table: Table) -> Iterator[pb.CacheRecords]:
    assert table.message is not None
    records = pb.CacheRecords()
    into: Any = getattr(records, table.name)
    size = 0
    for where, row in read_rows(path):
        try:
            message = table.message(row)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{where}: no row of {table.name}: {error!r}") from None
        if into and (len(into) == BATCH_RECORDS or size + message.ByteSize() > BATCH_BYTES):
            yield records
            records = pb.CacheRecords()
            into, size = getattr(records, table.name), 0
        into.append(message)
        size += message.ByteSize()
    if into:
        yield records
