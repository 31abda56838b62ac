"""Things that another server registered, taken over by their descriptions.

An id is the fingerprint of what a thing is, so a description proves itself: what does not hash to
its id is refused. What it names must be there before it. A name is taken over where it is free.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Table

from unmask_server.catalog.errors import InvalidArgument
from unmask_server.catalog.models import Models
from unmask_server.catalog.records import Entry, Records, check_name
from unmask_server.catalog.rows import digest, policy_values, teacher_values, verifier_values
from unmask_server.catalog.settings import check_sampling, question_entry
from unmask_server.catalog.templates import check_template, context_template
from unmask_server.catalog.types import (
    Model,
    Policy,
    Prompting,
    PromptStyle,
    Question,
    QuestionSpec,
    Teacher,
    Verifier,
    VerifierKind,
)
from unmask_server.catalog.verifiers import check_options
from unmask_server.database import schema

_FINGERPRINT = 32


class Adopter:
    """Takes descriptions over; what is known already stays as it is. Callable from threads."""

    def __init__(
        self, records: Records, models: Models, get_verifier: Callable[[str], Verifier]
    ) -> None:
        self._records = records
        self._models = models
        self._get_verifier = get_verifier

    def policy(self, given: Policy, field: str) -> tuple[bool, list[str]]:
        """Take a policy over. Returns whether it is new, and warnings.

        Raises:
            InvalidArgument: it is not what its id says.

        """
        check_sampling(given.sampling)
        _check_prompting(given.prompting, field)
        if not 1 <= given.max_new_tokens < given.model.max_context:
            raise InvalidArgument(f"{field}.max_new_tokens", "is not in the model's context")
        values = policy_values(
            given.model, given.sampling, given.max_new_tokens, given.stop_ids, given.prompting
        )
        entry = _entry("pol-", given.id, given.name, values, field)
        warnings = self._model(given.model, field)
        new, more = self._put(schema.policy, entry)
        return new, [*warnings, *more]

    def verifier(self, given: Verifier, field: str) -> tuple[bool, list[str]]:
        """Take a verifier over; an objective's terms are in its options, by id.

        Raises:
            InvalidArgument: it is not what its id says.
            NotFound: a term is not here.

        """
        if given.kind is VerifierKind.OBJECTIVE:
            for term in given.options:
                self._get_verifier(term)
        else:
            check_options(given.kind, given.options)
        values = verifier_values(given.kind, given.version, given.options)
        return self._put(schema.verifier, _entry("ver-", given.id, given.name, values, field))

    def questions(self, given: Sequence[tuple[Question, str, str]]) -> tuple[int, list[str]]:
        """Take questions over, each with its verifier's id and its field.

        Returns how many are new, and warnings.

        Raises:
            InvalidArgument: one is not what its id says.
            NotFound: a verifier is not here.

        """
        entries: dict[str, Entry] = {}
        for told, verifier_id, field in given:
            spec = QuestionSpec(told.name, told.fields, told.prompt_tokens)
            entry = question_entry(spec, self._get_verifier(verifier_id))
            if entry.id != told.id:
                raise _differs(told.id, entry.id, field)
            entries.setdefault(entry.id, entry)
        return self._put_all(schema.question, list(entries.values()))

    def teacher(self, given: Teacher, base_id: str | None, field: str) -> tuple[bool, list[str]]:
        """Take a teacher over; the one that it is a control of is named by its id.

        Raises:
            InvalidArgument: it is not what its id says.
            NotFound: what it is a control of is not here.

        """
        _check_prompting(given.prompting, field)
        if given.stored is None:
            context_template(given.context, given.template, f"{field}.context")
        if base_id is not None:
            self._records.get(schema.teacher, base_id, lambda row: row)
        values = teacher_values(
            given.model,
            given.prompting,
            context=given.context,
            template=given.template,
            control=given.control,
            base_id=base_id,
            stored=given.stored,
        )
        entry = _entry("tea-", given.id, given.name, values, field)
        warnings = self._model(given.model, field)
        new, more = self._put(schema.teacher, entry)
        return new, [*warnings, *more]

    def _model(self, model: Model, field: str) -> list[str]:
        for name, value in (
            ("fingerprint", model.fingerprint),
            ("tokenizer_fingerprint", model.tokenizer_fingerprint),
        ):
            if len(value) != _FINGERPRINT or set(value) - set("0123456789abcdef"):
                raise InvalidArgument(f"{field}.model.{name}", f"{value[:50]!r} is no fingerprint")
        if model.vocab_size < 1 or model.max_context < 1:
            raise InvalidArgument(f"{field}.model", "has no vocabulary, or no context")
        # Where another server reaches it is not where this one does.
        self._models.adopt(replace(model, endpoints=()))
        known = self._models.get(model.fingerprint)
        if self._models.is_here(known):
            return []
        return [
            f"model {model.fingerprint} ({model.architecture}, {model.source}) is not here: its "
            "rollouts are kept and exported, but nothing is answered from them until it is "
            "registered from a directory on this server"
        ]

    def _put(self, table: Table, entry: Entry) -> tuple[bool, list[str]]:
        new, warnings = self._put_all(table, [entry])
        return bool(new), warnings

    def _put_all(self, table: Table, entries: Sequence[Entry]) -> tuple[int, list[str]]:
        """Put things, without the names that they cannot have here."""
        warnings: list[str] = []
        fitting: list[Entry] = []
        for entry in entries:
            try:
                check_name(entry.name)
            except InvalidArgument as error:
                warnings.append(f"{entry.id}: the name {entry.name!r} {error.description}")
                entry = replace(entry, name=None)
            fitting.append(entry)
        there = self._records.get_many(table, [e.id for e in fitting], lambda row: row)
        problems = self._records.put_many(table, fitting)
        again: list[Entry] = []
        for entry, problem in zip(fitting, problems, strict=True):
            if problem is not None:
                warnings.append(f"{entry.id}: {problem.description}")
                again.append(replace(entry, name=None))
        self._records.put_many(table, again)
        return len(fitting) - len(there), warnings


def _entry(prefix: str, id_: str, name: str | None, values: dict[str, Any], field: str) -> Entry:
    found = prefix + digest(values)
    if found != id_:
        raise _differs(id_, found, field)
    return Entry(found, name, values)


def _differs(id_: str, found: str, field: str) -> InvalidArgument:
    return InvalidArgument(
        f"{field}.id", f"{id_[:50]!r} is not the id of what is described, which is {found}"
    )


def _check_prompting(prompting: Prompting, field: str) -> None:
    if prompting.style is PromptStyle.RAW and prompting.template is not None:
        check_template(prompting.template, f"{field}.prompting.template")
