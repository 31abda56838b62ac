"""A model's tokenizer: text to ids and back, and whether two are the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from unmask_server.catalog.errors import InvalidArgument

_UNFINISHED = "�"
"""What a decoder writes for bytes that are not yet a character."""


def _byte_pieces() -> Iterator[tuple[int, str]]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = 0
    for byte in range(0x100):
        if byte in printable:
            yield byte, chr(byte)
        else:
            yield byte, chr(0x100 + others)
            others += 1


_BYTE_PIECES = {piece: byte for byte, piece in _byte_pieces()}
"""How byte-level BPE writes bytes in its vocabulary (GPT-2's `bytes_to_unicode`)."""


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
        self._byte_level = _has_decoder(backend, "ByteLevel")
        self.limit = max(self._known, default=-1) + 1
        """One above the highest id that has a token."""
        self.fingerprint = _fingerprint(self._vocabulary)
        """Of the map from ids to tokens; 32 hexadecimal digits."""
        self.opening = self._find_opening()
        """The ids that the tokenizer puts before every text: its BOS, or nothing."""

    @staticmethod
    def load(folder: Path, field: str) -> ModelTokenizer:
        """Read a directory's tokenizer.

        Raises:
            InvalidArgument: there is none that can be read.

        """
        config = _json_object(folder / "special_tokens_map.json", field)
        config.update(_json_object(folder / "tokenizer_config.json", field))
        file = folder / "tokenizer.json"
        try:
            backend = Tokenizer.from_file(str(file)) if file.exists() else _converted(folder)
        except Exception as error:
            raise InvalidArgument(
                field, f"the tokenizer in {folder} cannot be read: {error}"
            ) from None
        if not backend.get_vocab_size():
            raise InvalidArgument(field, f"the tokenizer in {folder} has no tokens")
        return ModelTokenizer(backend, config, _chat_template(folder, config, field))

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

    @property
    def identity(self) -> str:
        """All that decides which ids a text becomes; 32 hexadecimal digits.

        The vocabulary, how text is cut into it, the special tokens and the chat template: with any
        other of these, a question's prompt may be another.
        """
        digest = hashlib.blake2b(digest_size=16)
        digest.update(json.dumps(json.loads(self._backend.to_str()), sort_keys=True).encode())
        special = [self.special(name) for name in ("bos_token", "eos_token", "unk_token")]
        digest.update(json.dumps([special, self.chat_template]).encode())
        return digest.hexdigest()

    def _find_opening(self) -> tuple[int, ...]:
        for probe in ("a", *islice(self._vocabulary, 100)):
            try:
                found = self._backend.encode(probe, add_special_tokens=True)
            except Exception:  # it has no token for unknown words
                continue
            if 0 in found.special_tokens_mask:
                return tuple(found.ids[: found.special_tokens_mask.index(0)])
        return ()

    def encode(self, text: str, *, add_special_tokens: bool = False) -> tuple[int, ...]:
        """The ids of a text.

        Raises:
            InvalidArgument: the tokenizer has no token for some of it, nor one for what is unknown.

        """
        try:
            return tuple(self._backend.encode(text, add_special_tokens=add_special_tokens).ids)
        except Exception as error:  # the library raises nothing narrower
            raise InvalidArgument("text", f"cannot be tokenised: {error}") from None

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens included; not always what was encoded to them."""
        return self._backend.decode(list(ids), skip_special_tokens=False)

    def plain(self, ids: Sequence[int]) -> str:
        """The text of ids without special tokens, as trainers write prompts down."""
        return self._backend.decode(list(ids), skip_special_tokens=True)

    def has(self, token_id: int) -> bool:
        """Whether an id has a token (padding columns of the logits have none)."""
        return token_id in self._known

    def token_text(self, token_id: int) -> str:
        """How a token reads on its own: bytes that are no character as `<0xE2>`."""
        text = self.decode([token_id])
        piece: str = self._backend.id_to_token(token_id) or ""
        if _UNFINISHED in text and self._byte_level:
            return "".join(_readable(_BYTE_PIECES.get(c), c) for c in piece)
        if _UNFINISHED in text or not text:
            return piece or text
        # Some decoders drop the space before the first word of a text.
        if piece.startswith("▁") and not text.startswith(" "):
            return piece.replace("▁", " ")
        return text

    def token_texts(self, ids: Sequence[int]) -> list[str]:
        """A text for each token; together they are the text of the whole.

        A character that several tokens make up is the last one's; so are bytes that make up none.
        """
        texts: list[str] = []
        # What is new is read after the character before it: decoders look there, for the space.
        before, start = 0, 0
        for i in range(len(ids)):
            now = self.decode(ids[before : i + 1])
            if now.endswith(_UNFINISHED) and i + 1 < len(ids):
                texts.append("")
                continue
            done = self.decode(ids[before:start])
            texts.append(now[len(done) :] if now.startswith(done) else self.token_text(ids[i]))
            before, start = start, i + 1
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
                found.append(
                    f"id {i} is {_named(mine.get(i))} here and {_named(theirs.get(i))} there"
                )
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


def _named(token: str | None) -> str:
    return "no token" if token is None else repr(token)


def _has_decoder(backend: Tokenizer, kind: str) -> bool:
    decoder = json.loads(backend.to_str()).get("decoder") or {}
    return kind in {decoder.get("type"), *(d.get("type") for d in decoder.get("decoders", ()))}


def _readable(byte: int | None, piece: str) -> str:
    if byte is None:
        return piece
    return chr(byte) if 0x20 <= byte < 0x7F else f"<0x{byte:02X}>"


def _json_object(file: Path, field: str) -> dict[str, Any]:
    if not file.exists():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidArgument(field, f"{file} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise InvalidArgument(field, f"{file} is no JSON object")
    return found


def _chat_template(folder: Path, config: dict[str, Any], field: str) -> str | None:
    file = folder / "chat_template.jinja"
    if file.exists():
        return file.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template}
        template = named.get("default")
        if template is None and named:
            raise InvalidArgument(
                field, f"none of the chat templates in {folder} is the default: {list(named)}"
            )
    return template if isinstance(template, str) else None


def _converted(folder: Path) -> Tokenizer:
    """The fast form of a tokenizer that has none on disk (SentencePiece); needs transformers."""
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise ValueError(
            "there is no tokenizer.json; save one with transformers' save_pretrained, or install "
            "transformers on the server"
        ) from None
    loaded = AutoTokenizer.from_pretrained(
        str(folder), local_files_only=True, trust_remote_code=False
    )
    return Tokenizer.from_str(loaded.backend_tokenizer.to_str())


def without_stop(tokens: tuple[int, ...], stop_ids: Sequence[int]) -> tuple[int, ...]:
    """The tokens that are text: a stop token ends a generation and is not part of its text."""
    return tokens[:-1] if tokens and tokens[-1] in stop_ids else tokens
