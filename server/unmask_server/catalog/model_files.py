"""What a checkpoint directory in Hugging Face format says of itself."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from unmask_server.access.sources import ANYWHERE, Sources
from unmask_server.catalog.errors import InvalidArgument

UNBOUNDED_CONTEXT = 2**20
"""Stands for the context of a model whose configuration names none."""

_INDEX = "model.safetensors.index.json"
_PATTERNS = ("model*.safetensors", "*.safetensors", "pytorch_model*.bin")
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")
_CHUNK = 8 * 2**20
# What says nothing about the function that the weights compute.
_IRRELEVANT = frozenset(
    {
        "_name_or_path",
        "_commit_hash",
        "_attn_implementation",
        "transformers_version",
        "torch_dtype",
        "dtype",
        "use_cache",
        "eos_token_id",
        "bos_token_id",
        "pad_token_id",
    }
)


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A checkpoint directory and its configuration."""

    folder: Path
    weights: tuple[Path, ...]
    """Empty where somebody else has them."""
    config: dict[str, Any]
    """config.json."""
    architecture: str
    """The class that its weights are for, or else the model type."""
    vocab_size: int
    """Columns of its logits."""
    max_context: int
    """Prompt and generation together, in tokens; `UNBOUNDED_CONTEXT` if none is named."""
    eos_ids: tuple[int, ...]
    """End tokens of its generation config, or else of its configuration."""


def read_model_files(
    path: str, field: str, *, is_served: bool = False, sources: Sources = ANYWHERE
) -> ModelFiles:
    """Read the configuration of a checkpoint, and check that its weights are there.

    Args:
        path: the directory.
        field: of the request, for errors.
        is_served: whether something else runs the model, so that weights may be missing.
        sources: which directories may be read.

    Raises:
        InvalidArgument: it is no checkpoint; says what is missing or wrong.
        SourceNotAllowed: it may not be read.

    """
    folder = sources.folder(path, field)
    if not folder.is_dir():
        raise InvalidArgument(field, f"{path[:200]} is no directory on the server")
    sources.check_files(folder, field)
    if (folder / "adapter_config.json").exists() and not (folder / "config.json").exists():
        raise InvalidArgument(field, f"{path} holds an adapter; merge it into its base model first")
    config = _json(folder / "config.json", field)
    # Models that also see or hear keep the language model's settings in a part of their own.
    text = config.get("text_config")
    text = text if isinstance(text, dict) else config
    vocab_size = text.get("vocab_size")
    if type(vocab_size) is not int or vocab_size < 1:
        raise InvalidArgument(field, f"{folder}/config.json has no vocab_size")
    weights = _weight_files(folder, field, may_lack=is_served)
    _check_weights(weights, vocab_size, field)
    contexts = [text[key] for key in _CONTEXT_KEYS if type(text.get(key)) is int and text[key] > 0]
    return ModelFiles(
        folder=folder,
        weights=weights,
        config=config,
        architecture=_architecture(config),
        vocab_size=vocab_size,
        max_context=contexts[0] if contexts else UNBOUNDED_CONTEXT,
        eos_ids=_eos_ids(folder, config, text, field),
    )


class Fingerprints:
    """Hashes of weight files, remembered as long as the files do not change."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int, int], str] = {}

    def of(self, files: ModelFiles, tokenizer_identity: str) -> str:
        """A model's fingerprint: 32 hexadecimal digits.

        Of the weight files, of the configuration as far as it decides what they compute, and of
        `ModelTokenizer.identity`.
        """
        digest = hashlib.blake2b(digest_size=16)
        digest.update(json.dumps(_relevant(files.config), sort_keys=True).encode())
        digest.update(tokenizer_identity.encode())
        for file in files.weights:
            digest.update(file.name.encode())
            digest.update(self._hash(file).encode())
        return digest.hexdigest()

    def _hash(self, file: Path) -> str:
        stat = file.stat()
        key = (str(file), stat.st_size, stat.st_mtime_ns)
        if key not in self._known:
            digest = hashlib.blake2b(digest_size=16)
            with file.open("rb") as stream:
                while chunk := stream.read(_CHUNK):
                    digest.update(chunk)
            self._known[key] = digest.hexdigest()
        return self._known[key]


def _relevant(config: Any) -> Any:
    if not isinstance(config, dict):
        return config
    return {key: _relevant(value) for key, value in config.items() if key not in _IRRELEVANT}


def _weight_files(folder: Path, field: str, *, may_lack: bool) -> tuple[Path, ...]:
    """The weights: the shards that the index names, or whatever there is."""
    index = folder / _INDEX
    if may_lack and not any(found for p in _PATTERNS for found in folder.glob(p)):
        return ()
    if index.exists():
        shards = _json(index, field).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise InvalidArgument(field, f"{index} names no shards")
        names = sorted(map(str, set(shards.values())))
        files = tuple(folder / name for name in names)
        for name, file in zip(names, files, strict=True):
            if Path(name).name != name:
                raise InvalidArgument(field, f"{index} names {name[:200]!r}, which is elsewhere")
            if not file.exists():
                raise InvalidArgument(field, f"{folder} lacks {file.name}, which its index names")
        return files
    for pattern in _PATTERNS:
        if found := sorted(folder.glob(pattern)):
            return tuple(found)
    raise InvalidArgument(field, f"{folder} holds no weights (model.safetensors)")


def _check_weights(files: tuple[Path, ...], vocab_size: int, field: str) -> None:
    """Read the headers: whether the files are whole, and as wide as the configuration says."""
    for file in files:
        if file.suffix != ".safetensors":
            continue
        try:
            with safe_open(str(file), framework="np") as tensors:
                names = [name for name in tensors.keys() if _is_head(name)]  # noqa: SIM118
                shapes = {name: tensors.get_slice(name).get_shape() for name in names}
        except (SafetensorError, OSError) as error:
            hint, is_pointer = "", False
            with suppress(OSError), file.open("rb") as stream:
                is_pointer = stream.read(30).startswith(b"version https://git-lfs")
            if is_pointer:
                hint = "; it is a Git LFS pointer: run `git lfs pull`"
            raise InvalidArgument(field, f"{file} cannot be read: {error}{hint}") from None
        for name, shape in shapes.items():
            if shape[0] != vocab_size:
                raise InvalidArgument(
                    field,
                    f"{name} in {file} has {shape[0]} rows, but config.json says that the "
                    f"vocabulary has {vocab_size}",
                )


def first_rows(files: ModelFiles, rows: int) -> tuple[str, NDArray[np.float64]] | None:
    """A parameter that every checkpoint has, to compare: the final norm's first numbers.

    Returns its name and up to `rows` numbers; None where there is none in safetensors.

    """
    for file in files.weights:
        if file.suffix != ".safetensors":
            continue
        with file.open("rb") as stream:
            # The format: the header's length, the header in JSON, then the data it points to.
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length))
            name = next((name for name in _NORMS if name in header), None)
            if name is None or header[name]["dtype"] not in _DTYPES:
                continue
            begin, end = header[name]["data_offsets"]
            stream.seek(8 + length + begin)
            stored = np.frombuffer(stream.read(end - begin), _DTYPES[header[name]["dtype"]])
        if stored.dtype == np.uint16:
            # The upper half of a float32.
            stored = (stored.astype(np.uint32) << 16).view(np.float32)
        return name, stored[:rows].astype(np.float64)
    return None


_DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_NORMS = ("model.norm.weight", "transformer.ln_f.weight", "model.language_model.norm.weight")


def _is_head(tensor: str) -> bool:
    return tensor == "lm_head.weight" or tensor.endswith(".lm_head.weight")


def _architecture(config: dict[str, Any]) -> str:
    listed = config.get("architectures")
    first = listed[0] if isinstance(listed, list) and listed else config.get("model_type")
    return first if isinstance(first, str) and first.isprintable() else "unknown"


def _eos_ids(
    folder: Path, config: dict[str, Any], text: dict[str, Any], field: str
) -> tuple[int, ...]:
    generation = folder / "generation_config.json"
    settings = _json(generation, field) if generation.exists() else {}
    found = next(
        (
            part["eos_token_id"]
            for part in (settings, config, text)
            if part.get("eos_token_id") is not None
        ),
        (),
    )
    ids = found if isinstance(found, list | tuple) else [found]
    if not all(type(token) is int for token in ids):
        raise InvalidArgument(field, f"the eos_token_id in {folder} is no token id: {found!r}")
    return tuple(ids)


def _json(file: Path, field: str) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InvalidArgument(
            field, f"{file.parent} has no {file.name}; is it a Hugging Face checkpoint?"
        ) from None
    except (OSError, ValueError) as error:
        raise InvalidArgument(field, f"{file} cannot be read: {error}") from None
    if not isinstance(data, dict):
        raise InvalidArgument(field, f"{file} is no JSON object")
    return data
