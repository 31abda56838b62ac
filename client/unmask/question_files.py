"""Files of questions as they are published, made JSONL; the server knows their columns."""

from __future__ import annotations

import gzip
import json
import os
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import parse_qsl

from unmask.v1 import catalog_pb2 as pb

SCHEME = "reasoning-gym:"
DEFAULT_SIZE = 50
"""Questions of a reasoning-gym set that does not say how many."""

_JSONL = (".jsonl", ".jsonl.gz", ".ndjson")
_KINDS = (*_JSONL, ".json", ".parquet")
_ARCHIVES = (".tar", ".tar.gz", ".tgz")
_QUESTIONS = {"question", "problem", "prompt", "prompt_tokens"}


@dataclass(frozen=True, slots=True)
class QuestionLines:
    """Questions, one JSON object a line."""

    jsonl: bytes
    origins: tuple[str, ...]
    """Where each line comes from, e.g. `train.jsonl:12` or `MATH/algebra/3.json`."""

    def parts(self, size: int, most: int | None = None) -> Iterator[tuple[int, bytes]]:
        """Runs of at most `size` lines with questions: how many lines stand before, and they.

        `most` is how many questions are wanted in all; blank lines are none.
        """
        start, full, total = 0, 0, 0
        lines = [line + b"\n" for line in self.jsonl.split(b"\n")]
        for end, line in enumerate(lines):
            if not line.strip():
                continue
            if total == most:
                lines = lines[:end]
                break
            if full == size:
                yield start, b"".join(lines[start:end])
                start, full = end, 0
            full += 1
            total += 1
        if full:
            yield start, b"".join(lines[start:])


def read_questions(path: str | os.PathLike[str]) -> QuestionLines:
    """Read `.jsonl` (also `.gz`), `.json` (an object or a list of them), or `.parquet`.

    Or a directory or a `.tar` of such files, in the order of their names with numbers as numbers;
    there a file with one question, as MATH has it, gives it its path as `unique_id` if it has none.
    Parquet needs pyarrow. A file with any other ending is read as JSONL.

    Raises:
        OSError: it cannot be read.
        ValueError: it holds no questions, is no JSON, or pyarrow is missing.

    """
    path = Path(path)
    if path.is_dir():
        files = [file for file in path.rglob("*") if file.is_file() and _kind(file.name) in _KINDS]
        found = [(str(f.relative_to(path)), f.read_bytes()) for f in files]
        return _many(path, found)
    if path.name.endswith(_ARCHIVES):
        return _many(path, list(_members(path)))
    data = path.read_bytes()
    if _kind(path.name) not in _KINDS or _kind(path.name) in _JSONL:
        return _as_they_are(str(path), data)
    rows = _rows(str(path), data)
    return _lines((f"{path}[{i}]", row) for i, row in enumerate(rows))


def parse_set(text: str) -> pb.ReasoningGymSet | None:
    """A set written `reasoning-gym:NAME?size=50&seed=1&min_terms=2`; None if the text is none.

    `size` (50), `seed` (0) and `prompt` are the set's, everything else its settings; a value that
    is JSON is taken as such.

    Raises:
        ValueError: size or seed is no whole number.

    """
    if not text.startswith(SCHEME):
        return None
    dataset, _, options = text.removeprefix(SCHEME).partition("?")
    config: dict[str, Any] = dict(parse_qsl(options, keep_blank_values=True))
    size, seed = (_whole(config, key, default) for key, default in (("size", 50), ("seed", 0)))
    prompt = config.pop("prompt", "")
    settings = {key: _value(value) for key, value in config.items()}
    return pb.ReasoningGymSet(
        dataset=dataset,
        size=size,
        seed=seed,
        prompt=prompt,
        config=json.dumps(settings) if settings else "",
    )


def _whole(config: dict[str, Any], key: str, default: int) -> int:
    text = config.pop(key, str(default))
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{SCHEME} {key}={text} is no whole number") from None


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _kind(name: str) -> str:
    name = name.lower()
    return ".jsonl.gz" if name.endswith(".jsonl.gz") else PurePath(name).suffix


def _members(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = PurePath(member.name).name
                # `._x.json` is what a Mac adds beside x.json.
                if member.isfile() and _kind(name) in _KINDS and not name.startswith("._"):
                    file = archive.extractfile(member)
                    if file is not None:
                        yield member.name, file.read()
    except tarfile.TarError as error:
        raise ValueError(f"{path}: {error}") from None


def _many(path: Path, files: list[tuple[str, bytes]]) -> QuestionLines:
    if not files:
        raise ValueError(f"{path}: there is no {', '.join(_KINDS)} in it")
    located: list[tuple[str, Any]] = []
    for name, data in sorted(files, key=lambda file: _by_number(file[0])):
        rows = list(_rows(name, data))
        alone = len(rows) == 1 and _kind(name) == ".json"
        for i, row in enumerate(rows):
            if alone and isinstance(row, dict):
                row.setdefault("unique_id", PurePath(name).as_posix())
            located.append((name if alone else f"{name}[{i}]", row))
    return _lines(located)


def _by_number(name: str) -> list[tuple[str, int]]:
    return [(text, int(number or 0)) for text, number in re.findall(r"(\D*)(\d*)", name)]


def _as_they_are(name: str, data: bytes) -> QuestionLines:
    if name.lower().endswith(".gz"):
        data = _unzipped(name, data)
    count = data.count(b"\n") + 1
    return QuestionLines(data, tuple(f"{name}:{line}" for line in range(1, count + 1)))


def _lines(located: Iterable[tuple[str, Any]]) -> QuestionLines:
    pairs = [(origin, json.dumps(row, default=str).encode()) for origin, row in located]
    return QuestionLines(b"\n".join(row for _, row in pairs), tuple(origin for origin, _ in pairs))


def _rows(name: str, data: bytes) -> Iterable[Any]:
    kind = _kind(name)
    if kind == ".parquet":
        return _parquet(name, data)
    if kind in _JSONL:
        return _json_lines(name, _unzipped(name, data) if kind == ".jsonl.gz" else data)
    try:
        found = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: not UTF-8: {error.reason} at byte {error.start}") from None
    except (ValueError, RecursionError):
        # JSONL is often called .json, Hugging Face's exports among them.
        return _json_lines(name, data)
    if isinstance(found, dict) and not found.keys() & _QUESTIONS:
        lists = [value for value in found.values() if isinstance(value, list)]
        if len(lists) == 1:  # {"data": [...]}
            return lists[0]
    return found if isinstance(found, list) else [found]


def _json_lines(name: str, data: bytes) -> list[Any]:
    rows = []
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if line.strip():
            try:
                rows.append(json.loads(line.decode()))
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{name}:{number}: no JSON: {error}") from None
    return rows


def _unzipped(name: str, data: bytes) -> bytes:
    try:
        return gzip.decompress(data)
    except (OSError, EOFError) as error:
        raise ValueError(f"{name}: not gzip: {error}") from None


def _parquet(name: str, data: bytes) -> list[Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ValueError(
            f"{name}: Parquet needs pyarrow: pip install 'unmask[parquet]'; or save it as JSONL"
        ) from None
    try:
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(data))
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{name}: {error}") from None
    rows: list[Any] = table.to_pylist()
    return rows
