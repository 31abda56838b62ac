"""Rows in files, as JSONL or Parquet, a few at a time."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

Format = Literal["jsonl", "parquet"]

_GROUP = 1000
"""Rows of a Parquet file that are held in memory together."""


class Writer(Protocol):
    """A file that rows are added to."""

    def write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add rows."""
        ...

    def close(self) -> None:
        """End the file."""
        ...


def open_writer(path: Path, format: Format, columns: Mapping[str, str]) -> Writer:
    """A new file for rows of these columns; kinds as in `columns.TYPES`.

    Raises:
        ValueError: Parquet, and pyarrow is missing.

    """
    return _Parquet(path, columns) if format == "parquet" else _Jsonl(path)


class _Jsonl:
    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8")

    def write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        for row in rows:
            self._file.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")

    def close(self) -> None:
        self._file.close()


class _Parquet:
    def __init__(self, path: Path, columns: Mapping[str, str]) -> None:
        self._arrow = arrow()
        self._schema = self._arrow.schema(
            [(name, _type(self._arrow, kind)) for name, kind in columns.items()]
        )
        self._writer = parquet().ParquetWriter(path, self._schema, compression="zstd")
        self._rows: list[Mapping[str, Any]] = []

    def write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self._rows += rows
        if len(self._rows) >= _GROUP:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._rows:
            table = self._arrow.Table.from_pylist(self._rows, schema=self._schema)
            self._writer.write_table(table)
            self._rows = []


def _type(arrow: Any, kind: str) -> Any:
    from unmask.sharing.columns import TYPES

    match kind:
        case "ids":
            return arrow.list_(arrow.int32())
        case "logprobs":
            return arrow.list_(arrow.float32())
        case "by_id":
            return arrow.map_(arrow.string(), arrow.float64())
        case _:
            return getattr(arrow, TYPES[kind])()


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where it stands, row) for every row of a `.parquet`, `.json`, `.jsonl` or `.jsonl.gz` file.

    All but `.json` are read a little at a time. A file with another ending is read as JSONL.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not what its name says, or pyarrow is missing.

    """
    name = path.name.lower()
    if name.endswith(".parquet"):
        yield from _parquet_rows(path)
    elif name.endswith(".json"):
        yield from _json_rows(path)
    else:
        yield from _json_lines(path)


def _json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    zipped = path.name.lower().endswith(".gz")
    with gzip.open(path, "rb") if zipped else path.open("rb") as file:
        # Only line feeds part lines: others may stand inside of a JSON string.
        for number, line in enumerate(file, 1):
            if line.strip():
                where = f"{path}:{number}"
                yield where, _object(where, line)


def _json_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        # JSONL is often called .json.
        yield from _json_lines(path)
        return
    rows = found if isinstance(found, list) else [found]
    for i, row in enumerate(rows):
        where = f"{path}[{i}]"
        if not isinstance(row, dict):
            raise ValueError(f"{where}: no JSON object")
        yield where, row


def _object(where: str, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: no JSON: {error}") from None
    if not isinstance(row, dict):
        raise ValueError(f"{where}: no JSON object")
    return row


def _parquet_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    pyarrow = arrow()
    try:
        file = parquet().ParquetFile(path)
        number = 0
        for batch in file.iter_batches(batch_size=256):
            for row in batch.to_pylist():
                yield f"{path}[{number}]", row
                number += 1
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path}: {error}") from None


def arrow() -> Any:
    """Load pyarrow. Raises ValueError: it is not installed."""
    try:
        import pyarrow
    except ImportError:
        raise ValueError(
            "Parquet needs pyarrow: pip install 'unmask[parquet]'; or use JSONL"
        ) from None
    return pyarrow


def parquet() -> Any:
    """Load pyarrow.parquet. Raises ValueError: pyarrow is not installed."""
    arrow()
    import pyarrow.parquet

    return pyarrow.parquet
