"""Checkpoints: read from their directories, kept in the database by fingerprint."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from sqlalchemy import Connection, Engine, insert, select, update
from sqlalchemy.exc import IntegrityError

from unmask_server.catalog.errors import FailedPrecondition, InvalidArgument
from unmask_server.catalog.model_files import Fingerprints, read_model_files
from unmask_server.catalog.rows import model_of
from unmask_server.catalog.tokenizer import ModelTokenizer
from unmask_server.catalog.types import Model
from unmask_server.database.connect import query, transact
from unmask_server.database.schema import model as table


class Models:
    """The models that things were registered with, and their tokenizers. Callable from threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._fingerprints = Fingerprints()
        self._tokenizers: dict[str, ModelTokenizer] = {}
        self._loading = threading.Lock()

    def open(self, path: str, field: str) -> tuple[Model, ModelTokenizer, bool]:
        """Read a checkpoint and keep what it is. Reads all of its weights if they are new.

        Returns it, its tokenizer, and whether it was known by another directory: then things that
        were read before hold the old one.

        Raises:
            InvalidArgument: it is no checkpoint.

        """
        model, tokenizer = self._read(path, field)
        try:
            moved = transact(self._engine, lambda c: _keep(c, model))
        except IntegrityError:
            # Registered twice at once, and the other one was first: now it is there.
            moved = transact(self._engine, lambda c: _keep(c, model))
        self._tokenizers[model.fingerprint] = tokenizer
        return model, tokenizer, moved

    def get(self, fingerprint: str) -> Model:
        """A model that something was registered with."""
        wanted = select(table).where(table.c.fingerprint == fingerprint)
        return model_of(query(self._engine, lambda c: c.execute(wanted).one())._mapping)

    def tokenizer(self, model: Model) -> ModelTokenizer:
        """A model's tokenizer.

        Raises:
            FailedPrecondition: its directory has none, or another one now.

        """
        found = self._tokenizers.get(model.fingerprint)
        if found is not None:
            return found
        with self._loading:
            found = self._tokenizers.get(model.fingerprint)
            if found is None:
                try:
                    found = ModelTokenizer.load(Path(model.source), "model")
                except InvalidArgument as error:
                    raise FailedPrecondition(_gone(model, error)) from None
                if found.fingerprint != model.tokenizer_fingerprint:
                    raise FailedPrecondition(_changed(model))
                self._tokenizers[model.fingerprint] = found
        return found

    def check_unchanged(self, model: Model) -> None:
        """Refuse a model whose directory holds something else by now, such as a later checkpoint.

        Reads all of its weights unless they are as they were at the last look.

        Raises:
            FailedPrecondition: its directory holds none, or another one.

        """
        try:
            now, _ = self._read(model.source, "model")
        except InvalidArgument as error:
            raise FailedPrecondition(_gone(model, error)) from None
        if now.fingerprint != model.fingerprint:
            raise FailedPrecondition(_changed(model))

    def _read(self, path: str, field: str) -> tuple[Model, ModelTokenizer]:
        files = read_model_files(path, field)
        tokenizer = ModelTokenizer.load(files.folder, field)
        if tokenizer.limit > files.vocab_size:
            raise InvalidArgument(
                field,
                f"the tokenizer has ids up to {tokenizer.limit - 1}, but the model only "
                f"{files.vocab_size} columns: they do not belong together",
            )
        model = Model(
            fingerprint=self._fingerprints.of(files, tokenizer.identity),
            source=str(files.folder),
            architecture=files.architecture,
            vocab_size=files.vocab_size,
            max_context=files.max_context,
            tokenizer_fingerprint=tokenizer.fingerprint,
            eos_ids=files.eos_ids,
        )
        return model, tokenizer


def _keep(connection: Connection, model: Model) -> bool:
    there = connection.execute(select(table).where(table.c.fingerprint == model.fingerprint))
    row = there.first()
    if row is None:
        connection.execute(
            insert(table).values(
                fingerprint=model.fingerprint,
                source=model.source,
                architecture=model.architecture,
                vocab_size=model.vocab_size,
                max_context=model.max_context,
                tokenizer_fingerprint=model.tokenizer_fingerprint,
                eos_ids=list(model.eos_ids),
                created_at=time.time(),
            )
        )
        return False
    if model_of(row._mapping) == model:
        return False
    # The same weights somewhere else (the old place may be gone), or with other end tokens.
    connection.execute(
        update(table)
        .where(table.c.fingerprint == model.fingerprint)
        .values(source=model.source, eos_ids=list(model.eos_ids))
    )
    return True


def _gone(model: Model, error: InvalidArgument) -> str:
    return (
        f"the model {model.fingerprint} is no longer at {model.source} ({error.reason}); put it "
        "back, or register it where it is now"
    )


def _changed(model: Model) -> str:
    return (
        f"{model.source} holds another model than the one that was registered "
        f"({model.fingerprint}); put that one back, or register the new one"
    )
