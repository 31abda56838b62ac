"""Checkpoints: read from their directories, kept in the database by fingerprint."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy import Connection, Engine, insert, select, update
from sqlalchemy.exc import IntegrityError

from unmask_server.access.errors import SourceNotAllowed
from unmask_server.access.sources import Sources
from unmask_server.catalog.errors import FailedPrecondition, InvalidArgument
from unmask_server.catalog.model_files import Fingerprints, read_model_files
from unmask_server.catalog.rows import model_of
from unmask_server.catalog.serving import (
    check_endpoints,
    look_at,
    served_fingerprint,
    served_folder,
)
from unmask_server.catalog.tokenizer import ModelTokenizer
from unmask_server.catalog.types import Model
from unmask_server.database.connect import query, transact
from unmask_server.database.schema import model as table
from unmask_server.reasons import Reason


class Models:
    """The models that things were registered with, and their tokenizers. Callable from threads."""

    def __init__(self, engine: Engine, sources: Sources) -> None:
        self._engine = engine
        self._sources = sources
        self._fingerprints = Fingerprints()
        self._tokenizers: dict[str, ModelTokenizer] = {}
        self._loading = threading.Lock()

    def open(
        self, path: str, field: str, endpoints: Sequence[str] = ()
    ) -> tuple[Model, ModelTokenizer, bool]:
        """Read a checkpoint and keep what it is. Reads all of its weights if they are new.

        Args:
            path: its directory; may be empty where endpoints are given.
            field: of the request, for errors.
            endpoints: SGLang servers that run it, which are inspected; empty: as it was before.

        Returns:
            It, its tokenizer, and whether it was known by another directory or elsewhere: then
            things that were read before hold the old place.

        Raises:
            InvalidArgument: it is no checkpoint.
            SourceNotAllowed: it, or one of its servers, is none that requests may name.
            FailedPrecondition: its servers run another model.
            EngineError: one of them does not answer.

        """
        endpoints = check_endpoints(endpoints, self._sources)
        if endpoints and not path:
            path = served_folder(endpoints, self._sources)
        model, tokenizer = self._read(path, field, endpoints)
        try:
            moved = transact(self._engine, lambda c: _keep(c, model))
        except IntegrityError:
            # Registered twice at once, and the other one was first: now it is there.
            moved = transact(self._engine, lambda c: _keep(c, model))
        self._tokenizers[model.fingerprint] = tokenizer
        return self.get(model.fingerprint), tokenizer, moved

    def adopt(self, model: Model) -> bool:
        """Keep a model by its description alone, unless it is known. Returns whether it is new.

        Until it is registered from a directory here, nothing can be sampled or scored with it.
        """
        known = select(table.c.fingerprint).where(table.c.fingerprint == model.fingerprint)
        if query(self._engine, lambda c: c.execute(known).first()) is not None:
            return False
        try:
            transact(self._engine, lambda c: _insert(c, model))
        except IntegrityError:
            return False
        return True

    def is_here(self, model: Model) -> bool:
        """Whether its tokenizer can be read here, so that texts can be made."""
        try:
            self.tokenizer(model)
        except (FailedPrecondition, SourceNotAllowed):
            return False
        return True

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
                    # What is in the store may be another server's word: an imported cache.
                    folder = self._sources.folder(model.source, "model")
                    found = ModelTokenizer.load(folder, "model")
                except InvalidArgument as error:
                    raise _gone(model, error) from None
                if found.fingerprint != model.tokenizer_fingerprint:
                    raise _changed(model)
                self._tokenizers[model.fingerprint] = found
        return found

    def check_unchanged(self, model: Model) -> None:
        """Refuse a model whose directory holds something else by now, such as a later checkpoint.

        Reads all of its weights unless they are as they were at the last look. What SGLang servers
        run is not looked at: the engine does, by the version of the weights.

        Raises:
            FailedPrecondition: its directory holds none, or another one.

        """
        if model.endpoints:
            return
        try:
            now, _ = self._read(model.source, "model")
        except InvalidArgument as error:
            raise _gone(model, error) from None
        if now.fingerprint != model.fingerprint:
            raise _changed(model)

    def _read(
        self, path: str, field: str, endpoints: tuple[str, ...] = ()
    ) -> tuple[Model, ModelTokenizer]:
        files = read_model_files(path, field, is_served=bool(endpoints), sources=self._sources)
        tokenizer = ModelTokenizer.load(files.folder, field)
        if tokenizer.limit > files.vocab_size:
            raise InvalidArgument(
                field,
                f"the tokenizer has ids up to {tokenizer.limit - 1}, but the model only "
                f"{files.vocab_size} columns: they do not belong together",
            )
        fingerprint = self._fingerprints.of(files, tokenizer.identity)
        serving = None
        if endpoints:
            found = look_at(endpoints, files, tokenizer, self._sources)
            fingerprint = served_fingerprint(fingerprint, files, found)
            serving = found.to_json()
        model = Model(
            fingerprint=fingerprint,
            source=str(files.folder),
            architecture=files.architecture,
            vocab_size=files.vocab_size,
            max_context=files.max_context,
            tokenizer_fingerprint=tokenizer.fingerprint,
            eos_ids=files.eos_ids,
            endpoints=endpoints,
            serving=serving,
        )
        return model, tokenizer


def _insert(connection: Connection, model: Model) -> None:
    connection.execute(
        insert(table).values(
            fingerprint=model.fingerprint,
            source=model.source,
            architecture=model.architecture,
            vocab_size=model.vocab_size,
            max_context=model.max_context,
            tokenizer_fingerprint=model.tokenizer_fingerprint,
            eos_ids=list(model.eos_ids),
            endpoints=list(model.endpoints),
            serving=model.serving,
            created_at=time.time(),
        )
    )


def _keep(connection: Connection, model: Model) -> bool:
    there = connection.execute(select(table).where(table.c.fingerprint == model.fingerprint))
    row = there.first()
    if row is None:
        _insert(connection, model)
        return False
    known = model_of(row._mapping)
    if not model.endpoints:
        model = replace(model, endpoints=known.endpoints, serving=known.serving)
    if known == model:
        return False
    # The same weights somewhere else (the old place may be gone), or with other end tokens.
    connection.execute(
        update(table)
        .where(table.c.fingerprint == model.fingerprint)
        .values(
            source=model.source,
            eos_ids=list(model.eos_ids),
            endpoints=list(model.endpoints),
            serving=model.serving,
        )
    )
    return True


def _gone(model: Model, error: InvalidArgument) -> FailedPrecondition:
    return FailedPrecondition(
        Reason.MODEL_UNREADABLE,
        f"the model {model.fingerprint} is no longer at {model.source} ({error.description}); put "
        "it back, or register it where it is now",
        model=model.fingerprint,
    )


def _changed(model: Model) -> FailedPrecondition:
    return FailedPrecondition(
        Reason.MODEL_CHANGED,
        f"{model.source} holds another model than the one that was registered "
        f"({model.fingerprint}); put that one back, or register the new one",
    )
