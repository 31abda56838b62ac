"""Checkpoint directories: what they say, and what makes two of them the same model."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from unmask_server.catalog.errors import InvalidArgument
from unmask_server.catalog.model_files import (
    UNBOUNDED_CONTEXT,
    Fingerprints,
    read_model_files,
)

from tests.catalog.checkpoints import checkpoint


def fingerprint(path: str | Path, tokenizer: str = "t") -> str:
    return Fingerprints().of(read_model_files(str(path), "model"), tokenizer)


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_a_checkpoint_says_what_it_is(tmp_path: Path) -> None:
    files = read_model_files(checkpoint(tmp_path, eos=[0, 2]), "model")
    assert files.architecture == "Qwen2ForCausalLM"
    assert (files.vocab_size, files.max_context, files.eos_ids) == (21, 64, (0, 2))


def test_end_tokens_come_from_the_configuration_if_there_is_no_other(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, eos=None, eos_token_id=5)
    assert read_model_files(path, "model").eos_ids == (5,)
    change(tmp_path / "config.json", eos_token_id=None)
    assert read_model_files(path, "model").eos_ids == ()


@pytest.mark.parametrize("listed", [5, "Qwen2", [], [5], {"a": 1}, ["\ud800"], ["a\0"]])
def test_an_architecture_that_is_none_is_unknown(tmp_path: Path, listed: object) -> None:
    path = checkpoint(tmp_path)
    change(tmp_path / "config.json", architectures=listed, model_type=None)
    assert read_model_files(path, "model").architecture == "unknown"


def test_the_language_part_of_a_larger_model_counts(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, text_config={"vocab_size": 21, "n_positions": 32})
    assert read_model_files(path, "model").max_context == 32
    change(tmp_path / "config.json", text_config={"vocab_size": 21})
    assert read_model_files(path, "model").max_context == UNBOUNDED_CONTEXT


def test_a_fingerprint_is_of_what_the_model_computes(tmp_path: Path) -> None:
    base = fingerprint(checkpoint(tmp_path / "a"))
    assert len(base) == 32
    copy = shutil.copytree(tmp_path / "a", tmp_path / "copy")
    change(copy / "config.json", torch_dtype="bfloat16", transformers_version="9", use_cache=False)
    assert fingerprint(copy) == base
    assert fingerprint(copy, "another tokenizer") != base
    assert fingerprint(checkpoint(tmp_path / "b", weight=1.0)) != base
    assert fingerprint(checkpoint(tmp_path / "c", rope_theta=1e6)) != base
    assert fingerprint(checkpoint(tmp_path / "d", rope_parameters={"a": 1})) != base


def test_weights_that_changed_are_read_again(tmp_path: Path) -> None:
    path = checkpoint(tmp_path)
    fingerprints = Fingerprints()
    before = fingerprints.of(read_model_files(path, "model"), "t")
    weights = tmp_path / "model.safetensors"
    time = weights.stat().st_mtime_ns
    checkpoint(tmp_path, weight=1.0)
    os.utime(weights, ns=(time + 1, time + 1))
    assert fingerprints.of(read_model_files(path, "model"), "t") != before


def test_shards_are_those_that_the_index_names(tmp_path: Path) -> None:
    path = checkpoint(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "model-1.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"lm_head.weight": "model-1.safetensors"}}))
    assert [f.name for f in read_model_files(path, "model").weights] == ["model-1.safetensors"]
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "lost"}}))
    with pytest.raises(InvalidArgument, match="lacks lost"):
        read_model_files(path, "model")


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("config.json", None, "has no config.json"),
        ("config.json", "{", "cannot be read"),
        ("config.json", "[]", "no JSON object"),
        ("config.json", '{"vocab_size": true}', "no vocab_size"),
        ("config.json", '{"vocab_size": 22}', "has 21 rows"),
        ("generation_config.json", '{"eos_token_id": "x"}', "no token id"),
        ("model.safetensors", None, "no weights"),
        ("model.safetensors", "{}", "cannot be read"),
        ("model.safetensors", "version https://git-lfs.github.com/spec/v1", "git lfs pull"),
    ],
)
def test_a_directory_that_is_no_checkpoint_is_refused(
    tmp_path: Path, file: str, content: str | None, reason: str
) -> None:
    path = checkpoint(tmp_path)
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_text(content)
    with pytest.raises(InvalidArgument, match=reason) as caught:
        read_model_files(path, "model")
    assert caught.value.field == "model"


def test_no_directory_and_an_adapter_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="no directory"):
        read_model_files(str(tmp_path / "nothing"), "model")
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(InvalidArgument, match="merge"):
        read_model_files(str(tmp_path), "model")
