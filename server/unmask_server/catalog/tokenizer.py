"""A model's tokenizer: text to ids and back, and whether two are the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from unmask_server.catalog.errors import InvalidArgument

_UNFINISHED = "�"
"""What a decoder writes for bytes that are not yet a character."""


class ModelTokenizer:
    """The tokenizer of a checkpoint directory (its tokenizer.json). Safe to use from threads."""

    def __init__(self, backend: Tokenizer, config: dict[str, Any], chat_template: str | None):
        self._backend = backend
        self._backend.no_padding()
        # Nothing is cut silently, whatever the file says.
        self._backend.no_truncation()
        self._config = config
        self.chat_template = chat_template
        self._vocabulary: dict[str, int] = backend.get_vocab(with_added_tokens=True)
        self._known = frozenset(self._vocabulary.values())
        self.limit = max(self._known) + 1
        """One above the highest id that has a token."""
        self.fingerprint = _fingerprint(self._vocabulary)
        """Of the map from ids to tokens; 32 hexadecimal digits."""

    @staticmethod
    def load(folder: Path, field: str) -> ModelTokenizer:
        """Read a directory's tokenizer.

        Raises:
            InvalidArgument: there is none that can be read.

        """
        config_file = folder / "tokenizer_config.json"
        config = json.loads(config_file.read_text(encoding="utf-8")) if config_file.exists() else {}
        file = folder / "tokenizer.json"
        try:
            backend = Tokenizer.from_file(str(file)) if file.exists() else _converted(folder)
        except Exception as error:
            raise InvalidArgument(
                field, f"the tokenizer in {folder} cannot be read: {error}"
            ) from None
        return ModelTokenizer(backend, config, _chat_template(folder, config))

    def special(self, name: str) -> str | None:
        """The text of `bos_token`, `eos_token`, …, if the tokenizer has it."""
        value = self._config.get(name)
        if isinstance(value, dict):
            value = value.get("content")
        return value if isinstance(value, str) else None

    @property
    def bos_id(self) -> int | None:
        """The id of its beginning-of-sequence token, if it has one."""
        bos = self.special("bos_token")
        return None if bos is None else self._vocabulary.get(bos)

    def encode(self, text: str, *, add_special_tokens: bool = False) -> tuple[int, ...]:
        """The ids of a text."""
        return tuple(self._backend.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens included; not always what was encoded to them."""
        return self._backend.decode(list(ids), skip_special_tokens=False)

    def has(self, token_id: int) -> bool:
        """Whether an id has a token (padding columns of the logits have none)."""
        return token_id in self._known

    def token_text(self, token_id: int) -> str:
        """How a token reads on its own."""
        text = self.decode([token_id])
        if _UNFINISHED in text or not text:
            return self._backend.id_to_token(token_id) or text
        return text

    def token_texts(self, ids: Sequence[int]) -> list[str]:
        """A text for each token; together they are the text of the whole.

        A character that several tokens make up is the last one's.
        """
        texts: list[str] = []
        start = 0
        done = ""
        for i in range(len(ids)):
            now = self.decode(ids[start : i + 1])
            if now.endswith(_UNFINISHED) and i + 1 < len(ids):
                texts.append("")
                continue
            texts.append(now[len(done) :] if now.startswith(done) else self.token_text(ids[i]))
            # A window of two tokens: decoders look at the token before, for the space.
            start, done = i, self.decode(ids[i : i + 1])
        return texts

    def differences(self, other: ModelTokenizer, limit: int = 5) -> list[str]:
        """The first ids that mean different things to `other`; empty if it is the same tokenizer.

        Ids that only one of them has are compared, too.
        """
        if self.fingerprint == other.fingerprint:
            return []
        mine = {i: token for token, i in self._vocabulary.items()}
        theirs = {i: token for token, i in other._vocabulary.items()}
        found = []
        for i in sorted(mine.keys() | theirs.keys()):
            if mine.get(i) != theirs.get(i):
                found.append(f"id {i} is {mine.get(i)!r} here and {theirs.get(i)!r} there")
                if len(found) == limit:
                    break
        return found


def check_token_ids(
    field: str, ids: Sequence[int], vocab_size: int, tokenizer: ModelTokenizer
) -> None:
    """Refuse ids that the model cannot take.

    Raises:
        InvalidArgument: an id is no integer, out of range, or has no token; names place and id.

    """
    for i, token in enumerate(ids):
        if isinstance(token, bool) or not isinstance(token, int):
            raise InvalidArgument(f"{field}[{i}]", f"{token!r} is no token id")
        if not 0 <= token < vocab_size:
            raise InvalidArgument(
                f"{field}[{i}]", f"token id {token} is not in 0 to {vocab_size - 1}"
            )
        if not tokenizer.has(token):
            raise InvalidArgument(
                f"{field}[{i}]",
                f"token id {token} has no token: it is a padding column of the model",
            )


def _fingerprint(vocabulary: dict[str, int]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for token, i in sorted(vocabulary.items(), key=lambda item: item[1]):
        digest.update(f"{i}\x1f{token}\x1e".encode())
    return digest.hexdigest()


def _chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.exists():
        return file.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {entry["name"]: entry["template"] for entry in template}
        return named.get("default")
    return template


def _converted(folder: Path) -> Tokenizer:
    """The fast form of a tokenizer that has none on disk (SentencePiece); needs transformers."""
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(folder)
    return Tokenizer.from_str(loaded.backend_tokenizer.to_str())
