"""What a checkpoint directory in Hugging Face format says of itself."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unmask_server.catalog.errors import InvalidArgument

_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_CHUNK = 8 * 2**20
# What says nothing about the function that the weights compute.
_IRRELEVANT = {"_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache"}


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A directory's configuration."""

    folder: Path
    config: dict[str, Any]
    architecture: str
    vocab_size: int
    max_context: int
    eos_ids: tuple[int, ...]


def read_model_files(path: str, field: str) -> ModelFiles:
    """Read the configuration of a checkpoint.

    Raises:
        InvalidArgument: it is no checkpoint; says what is missing.

    """
    folder = Path(path).expanduser().resolve()
    if not folder.is_dir():
        raise InvalidArgument(field, f"{path} is no directory on the server")
    config = _json(folder / "config.json", field)
    if not _weight_files(folder):
        raise InvalidArgument(field, f"{path} holds no weights (model.safetensors)")
    text = config.get("text_config", config)
    missing = [key for key in ("vocab_size",) if not isinstance(text.get(key), int)]
    if missing:
        raise InvalidArgument(field, f"{path}/config.json lacks {missing[0]}")
    generation = folder / "generation_config.json"
    eos = _json(generation, field).get("eos_token_id") if generation.exists() else None
    if eos is None:
        eos = config.get("eos_token_id", text.get("eos_token_id"))
    eos_ids = tuple(eos) if isinstance(eos, list) else () if eos is None else (int(eos),)
    context = text.get("max_position_embeddings") or text.get("n_positions") or 2**20
    return ModelFiles(
        folder=folder,
        config=config,
        architecture=(config.get("architectures") or [config.get("model_type", "unknown")])[0],
        vocab_size=text["vocab_size"],
        max_context=int(context),
        eos_ids=eos_ids,
    )


class Fingerprints:
    """Hashes of weight files, remembered as long as the files do not change."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int, int], str] = {}

    def of(self, files: ModelFiles, tokenizer_fingerprint: str) -> str:
        """A model's fingerprint: 32 hexadecimal digits."""
        digest = hashlib.blake2b(digest_size=16)
        config = {k: v for k, v in files.config.items() if k not in _IRRELEVANT}
        digest.update(json.dumps(config, sort_keys=True).encode())
        digest.update(tokenizer_fingerprint.encode())
        for file in _weight_files(files.folder):
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


def _weight_files(folder: Path) -> list[Path]:
    for pattern in _WEIGHTS:
        if found := sorted(folder.glob(pattern)):
            return found
    return []


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
