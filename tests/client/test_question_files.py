"""Files of questions become lines of JSON, and each knows where it came from."""

from __future__ import annotations

import gzip
import importlib.util
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from unmask.question_files import QuestionLines, parse_set, read_questions

ROW = {"problem": "1 + 1?", "solution": "\\boxed{2}", "level": "Level 1", "type": "Algebra"}


def rows(path: Path) -> list[Any]:
    return [json.loads(line) for line in read_questions(path).jsonl.splitlines()]


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def test_jsonl_is_sent_as_it_is(tmp_path: Path) -> None:
    data = b'\xef\xbb\xbf{"question":"q"}\r\n\n{broken'
    (tmp_path / "a.jsonl").write_bytes(data)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(data))
    (tmp_path / "a.txt").write_bytes(data)
    for name in ("a.jsonl", "a.jsonl.gz", "a.txt"):
        found = read_questions(tmp_path / name)
        assert found.jsonl == data
        assert found.origins[2] == f"{tmp_path / name}:3"


@pytest.mark.parametrize(
    "text",
    [
        json.dumps([ROW, ROW]),
        json.dumps([ROW, ROW], indent=2),
        json.dumps({"version": 1, "data": [ROW, ROW]}),
        f"{json.dumps(ROW)}\n\n{json.dumps(ROW)}\n",
        "\ufeff" + json.dumps([ROW, ROW]),
    ],
)
def test_json_holds_a_list_or_lines(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    assert rows(tmp_path / "a.json") == [ROW, ROW]


def test_a_directory_of_subjects_is_one_set_in_the_order_of_its_numbers(tmp_path: Path) -> None:
    for name in ("algebra/10.json", "algebra/2.json", "geometry/1.json"):
        write(tmp_path / "test" / name, ROW)
    (tmp_path / "test" / "README.md").write_text("not a question")
    found = read_questions(tmp_path / "test")
    assert found.origins == ("algebra/2.json", "algebra/10.json", "geometry/1.json")
    assert [row["unique_id"] for row in rows(tmp_path / "test")] == list(found.origins)
    with tarfile.open(tmp_path / "MATH.tar", "w") as archive:
        archive.add(tmp_path / "test", "MATH/test")
        archive.addfile(tarfile.TarInfo("MATH/test/algebra/._2.json"), io.BytesIO())
    assert [row["unique_id"] for row in rows(tmp_path / "MATH.tar")] == [
        "MATH/test/algebra/2.json", "MATH/test/algebra/10.json", "MATH/test/geometry/1.json",
    ]  # fmt: skip


def test_parts_are_cut_between_questions() -> None:
    lines = QuestionLines(b"a\n\nb\nc\n\nd", tuple("123456"))
    assert list(lines.parts(2)) == [(0, b"a\n\nb\n"), (3, b"c\n\nd\n")]
    assert list(lines.parts(2, most=3)) == [(0, b"a\n\nb\n"), (3, b"c\n\n")]
    assert list(lines.parts(9, most=9)) == [(0, b"a\n\nb\nc\n\nd\n")]
    assert list(QuestionLines(b"\n\n", ("1", "2", "3")).parts(2)) == []


def test_what_cannot_be_read_says_why(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.json").write_text('{"question": "q"}\n{')
    (tmp_path / "bad.jsonl.gz").write_bytes(b"no gzip")
    (tmp_path / "bad.tar").write_bytes(b"no tar")
    for name, problem in (
        ("empty", "there is no .jsonl"),
        ("bad.json", "bad.json:2: no JSON"),
        ("bad.jsonl.gz", "not gzip"),
        ("bad.tar", "bad.tar"),
    ):
        with pytest.raises(ValueError, match=problem):
            read_questions(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        read_questions(tmp_path / "none.jsonl")


@pytest.mark.skipif(importlib.util.find_spec("pyarrow") is not None, reason="pyarrow is there")
def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"unmask\[parquet\]"):
        read_questions(tmp_path / "a.parquet")


def test_parquet_is_read_by_pyarrow(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    row = {"prompt": [{"role": "user", "content": "q"}], "reward_model": {"ground_truth": "1"}}
    parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "a.parquet")
    assert rows(tmp_path / "a.parquet") == [row]
    (tmp_path / "b.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"b\.parquet"):
        read_questions(tmp_path / "b.parquet")


def test_a_set_is_written_in_one_word() -> None:
    found = parse_set("reasoning-gym:chain_sum?size=7&seed=3&min_terms=2&prompt=none&a=b&c=[1,2]")
    assert found is not None
    assert (found.dataset, found.size, found.seed, found.prompt) == ("chain_sum", 7, 3, "none")
    assert json.loads(found.config) == {"min_terms": 2, "a": "b", "c": [1, 2]}
    plain = parse_set("reasoning-gym:countdown")
    assert plain is not None
    assert (plain.dataset, plain.size, plain.config) == ("countdown", 50, "")
    assert parse_set("questions.jsonl") is None
    with pytest.raises(ValueError, match="size=many"):
        parse_set("reasoning-gym:countdown?size=many")
