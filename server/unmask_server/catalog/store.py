"""The catalog: what things are, registered once and found by id or name."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, Row, Table, insert, or_, select, tuple_, update
from sqlalchemy.exc import IntegrityError

from unmask_server.catalog.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
)
from unmask_server.catalog.model_files import Fingerprints, read_model_files
from unmask_server.catalog.prompting import choose_prompting, render_prompt
from unmask_server.catalog.rows import (
    digest,
    model_of,
    pack_tokens,
    policy_of,
    prompting_data,
    question_of,
    teacher_of,
    verifier_of,
)
from unmask_server.catalog.templates import context_template, render_context
from unmask_server.catalog.tokenizer import ModelTokenizer, check_token_ids
from unmask_server.catalog.trajectories import TrajectoryStore
from unmask_server.catalog.types import (
    Model,
    Policy,
    Prompting,
    Question,
    QuestionSpec,
    RenderedPrompt,
    Teacher,
    Verifier,
    VerifierKind,
)
from unmask_server.catalog.verifiers import (
    BUILT_IN,
    VERSIONS,
    Grader,
    check_options,
    check_reference,
)
from unmask_server.database import schema
from unmask_server.database.connect import query, transact
from unmask_server.engines.base import Sampling

Thing = TypeVar("Thing")
Page = tuple[float, str]

MAX_NAME = 200
DEFAULT_MAX_NEW_TOKENS = 256
_BUILT_IN_NAMES = frozenset(kind.value for kind in BUILT_IN)


class Catalog:
    """Models, policies, teachers, verifiers and questions. Callable from threads.

    An id is the fingerprint of what a thing is, so registering it again finds it; a name is the
    client's, unique among its kind, and can be used wherever an id can. Nothing is ever changed or
    deleted, so what was read once is remembered.
    """

    def __init__(self, engine: Engine, grader: Grader) -> None:
        self._engine = engine
        self._grader = grader
        self._fingerprints = Fingerprints()
        self._tokenizers: dict[str, ModelTokenizer] = {}
        self._things: dict[tuple[str, str], Any] = {}
        self._verifiers: dict[int, Verifier] = {}
        self.trajectories = TrajectoryStore(engine)
        self._rendered = lru_cache(maxsize=4096)(self._render)

    # ------------------------------------------------------------------------------ policies

    def register_policy(
        self,
        *,
        path: str,
        name: str | None,
        sampling: Sampling,
        max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
        stop_ids: tuple[int, ...] | None = None,
        stop_texts: Sequence[str] = (),
        prompting: Prompting | None = None,
    ) -> tuple[Policy, list[str]]:
        """Register a student. Returns it, and warnings.

        Raises:
            InvalidArgument: no checkpoint, or a setting out of range.
            AlreadyExists: the name is another policy's.

        """
        _check_name(name)
        _check_sampling(sampling)
        model, tokenizer = self._open_model(path, "model")
        stops = self._stop_ids(model, tokenizer, stop_ids, stop_texts)
        if not 1 <= max_new_tokens < model.max_context:
            raise InvalidArgument(
                "max_new_tokens",
                f"{max_new_tokens} is not in 1 to {model.max_context - 1}, the model's context",
            )
        chosen = choose_prompting(prompting, tokenizer, "prompting")
        values = {
            "model_fingerprint": model.fingerprint,
            "temperature": float(sampling.temperature),
            "top_p": float(sampling.top_p),
            "top_k": sampling.top_k,
            "max_new_tokens": max_new_tokens,
            "stop_ids": list(stops),
            "prompting": prompting_data(chosen),
        }
        policy_id = self._put(schema.policy, "pol-" + digest(values), name, values, "policy")
        warnings = [] if stops else ["no stop token: every generation runs to max_new_tokens"]
        return self.get_policy(policy_id), warnings

    def get_policy(self, name: str) -> Policy:
        """A policy by id or name. Raises NotFound."""
        return self._get(schema.policy, "policy", name, self._policy)

    def find_policy(self, name: str) -> Policy | None:
        """A policy by id or name, if there is one."""
        try:
            return self.get_policy(name)
        except NotFound:
            return None

    def list_policies(self, size: int, after: Page | None) -> list[Policy]:
        """A page, oldest first."""
        return self._list(schema.policy, size, after, self._policy)

    # ------------------------------------------------------------------------------ teachers

    def register_teacher(
        self,
        *,
        path: str,
        name: str | None,
        context: str,
        template: str | None,
        prompting: Prompting | None,
        students: Sequence[Policy],
    ) -> tuple[Teacher, list[str]]:
        """Register a teacher. Returns it, and warnings.

        Raises:
            InvalidArgument: no checkpoint, no such context.
            FailedPrecondition: its tokenizer is not a student's.
            AlreadyExists: the name is another teacher's.

        """
        _check_name(name)
        text = context_template(context, template, "context")
        model, tokenizer = self._open_model(path, "model")
        for i, student in enumerate(students):
            if differences := self.tokenizer_differences(student.model, model):
                raise FailedPrecondition(
                    f"policies[{i}]: policy {student.id} has another tokenizer than {path}: "
                    f"{'; '.join(differences)}"
                )
        chosen = choose_prompting(prompting, tokenizer, "prompting")
        values = {
            "model_fingerprint": model.fingerprint,
            "context": context,
            "context_template": text,
            "prompting": prompting_data(chosen),
        }
        teacher_id = self._put(schema.teacher, "tea-" + digest(values), name, values, "teacher")
        return self.get_teacher(teacher_id), []

    def get_teacher(self, name: str) -> Teacher:
        """A teacher by id or name. Raises NotFound."""
        return self._get(schema.teacher, "teacher", name, self._teacher)

    def list_teachers(self, size: int, after: Page | None) -> list[Teacher]:
        """A page, oldest first."""
        return self._list(schema.teacher, size, after, self._teacher)

    def tokenizer_differences(self, first: Model, second: Model) -> list[str]:
        """The first ids that mean different things to two models; empty if none does."""
        if first.tokenizer_fingerprint == second.tokenizer_fingerprint:
            return []
        return self.tokenizer(first).differences(self.tokenizer(second))

    # ----------------------------------------------------------------------------- verifiers

    def register_verifier(
        self, kind: VerifierKind, options: Mapping[str, str], name: str | None
    ) -> Verifier:
        """Register a verifier.

        Raises:
            InvalidArgument: options that the kind does not have; a built-in name.
            AlreadyExists: the name is another verifier's.

        """
        _check_name(name)
        if name in _BUILT_IN_NAMES:
            raise InvalidArgument("name", f"{name!r} is the built-in verifier's")
        check_options(kind, options)
        values = {"kind": kind.value, "version": VERSIONS[kind], "options": dict(options)}
        verifier_id = self._put(schema.verifier, "ver-" + digest(values), name, values, "verifier")
        return self.get_verifier(verifier_id)

    def get_verifier(self, name: str) -> Verifier:
        """A verifier by id, name or built-in name. Raises NotFound.

        A built-in name means the current version of its grading code.
        """
        if name in _BUILT_IN_NAMES:
            kind = VerifierKind(name)
            values: dict[str, Any] = {"kind": name, "version": VERSIONS[kind], "options": {}}
            verifier_id = "ver-" + digest(values)
            if ("verifier", verifier_id) not in self._things:
                self._put(schema.verifier, verifier_id, None, values, "verifier")
            name = verifier_id
        return self._get(schema.verifier, "verifier", name, self._verifier)

    def verifier_by_key(self, key: int) -> Verifier:
        """The verifier of a statistics key."""
        if key not in self._verifiers:
            wanted = select(schema.verifier).where(schema.verifier.c.key == key)
            row = query(self._engine, lambda c: c.execute(wanted).one())
            self._verifiers[key] = self._verifier(row)
        return self._verifiers[key]

    def list_verifiers(self, size: int, after: Page | None) -> list[Verifier]:
        """A page, oldest first."""
        return self._list(schema.verifier, size, after, self._verifier)

    # ----------------------------------------------------------------------------- questions

    def register_questions(
        self, specs: Sequence[QuestionSpec | str], verifier: Verifier
    ) -> list[Question | str]:
        """Register each by itself; what is refused (or was no question) is told in its place."""
        results: list[Question | str] = []
        for spec in specs:
            if isinstance(spec, str):
                results.append(spec)
                continue
            try:
                results.append(self._register_question(spec, verifier))
            except (InvalidArgument, AlreadyExists) as error:
                results.append(str(error))
        return results

    def _register_question(self, spec: QuestionSpec, verifier: Verifier) -> Question:
        _check_name(spec.name)
        if not spec.prompt_tokens and not str(spec.fields.get("question", "")).strip():
            raise InvalidArgument("question", "is empty; give its text, or prompt_tokens")
        for i, token in enumerate(spec.prompt_tokens or ()):
            if not 0 <= token < 2**31:
                raise InvalidArgument(f"prompt_tokens[{i}]", f"{token} is no token id")
        if problem := check_reference(verifier, str(spec.fields.get("answer", "")), self._grader):
            raise InvalidArgument("answer", problem)
        values = {
            "fields": dict(spec.fields),
            "prompt_tokens": pack_tokens(spec.prompt_tokens) if spec.prompt_tokens else None,
            "verifier_key": verifier.key,
        }
        identity = digest(dict(spec.fields), spec.prompt_tokens, verifier.id)
        question_id = self._put(schema.question, "que-" + identity, spec.name, values, "question")
        return self.get_question(question_id)

    def get_question(self, name: str) -> Question:
        """A question by id or name. Raises NotFound."""
        return self._get(schema.question, "question", name, self._question)

    def list_questions(self, size: int, after: Page | None) -> list[Question]:
        """A page, oldest first."""
        return self._list(schema.question, size, after, self._question)

    # ------------------------------------------------------------------------------- prompts

    def tokenizer(self, model: Model) -> ModelTokenizer:
        """A model's tokenizer."""
        found = self._tokenizers.get(model.fingerprint)
        if found is None:
            found = ModelTokenizer.load(Path(model.source), "model")
            self._tokenizers[model.fingerprint] = found
        return found

    def usable_vocab(self, model: Model) -> int:
        """How many of the model's columns are tokens: what lies above is padding."""
        return min(model.vocab_size, self.tokenizer(model).limit)

    def policy_prompt(self, policy: Policy, question: Question) -> RenderedPrompt:
        """What a policy is asked.

        Raises:
            FailedPrecondition: it and a whole generation do not fit the model's context.

        """
        prompt = self._rendered(policy.model, policy.prompting, "{{ question }}", question.id)
        _check_window(prompt, policy.max_new_tokens, policy.model, policy.id, question.id)
        return prompt

    def prompt_tokens(self, policy: Policy, question: Question) -> tuple[int, ...]:
        """The ids of `policy_prompt`."""
        return self.policy_prompt(policy, question).tokens

    def teacher_prompt(
        self, teacher: Teacher, question: Question, max_new_tokens: int = 0
    ) -> RenderedPrompt:
        """What a teacher is shown; nothing is ever cut off.

        Raises:
            InvalidArgument: the question lacks a field that the context needs.
            FailedPrecondition: it and `max_new_tokens` more do not fit the teacher's context.

        """
        prompt = self._rendered(teacher.model, teacher.prompting, teacher.template, question.id)
        _check_window(prompt, max_new_tokens, teacher.model, teacher.id, question.id)
        return prompt

    def _render(
        self, model: Model, prompting: Prompting, template: str, question_id: str
    ) -> RenderedPrompt:
        question = self.get_question(question_id)
        tokenizer = self.tokenizer(model)
        if question.prompt_tokens is not None:
            if template != "{{ question }}":
                raise InvalidArgument(
                    "context",
                    f"question {question_id} is given as tokens, which no template can extend",
                )
            check_token_ids("prompt_tokens", question.prompt_tokens, model.vocab_size, tokenizer)
            tokens = question.prompt_tokens
            return RenderedPrompt(tokenizer.decode(tokens), tokens)
        content = render_context(template, question.fields, question_id=question_id)
        return render_prompt(prompting, tokenizer, content)

    # -------------------------------------------------------------------------------- inside

    def _open_model(self, path: str, field: str) -> tuple[Model, ModelTokenizer]:
        files = read_model_files(path, field)
        tokenizer = ModelTokenizer.load(files.folder, field)
        fingerprint = self._fingerprints.of(files, tokenizer.fingerprint)
        if tokenizer.limit > files.vocab_size:
            raise InvalidArgument(
                field,
                f"the tokenizer has ids up to {tokenizer.limit - 1}, but the model only "
                f"{files.vocab_size} columns",
            )
        model = Model(
            fingerprint=fingerprint,
            source=str(files.folder),
            architecture=files.architecture,
            vocab_size=files.vocab_size,
            max_context=files.max_context,
            tokenizer_fingerprint=tokenizer.fingerprint,
            eos_ids=files.eos_ids,
        )
        self._keep_model(model)
        self._tokenizers[fingerprint] = tokenizer
        return model, tokenizer

    def _keep_model(self, model: Model) -> None:
        table = schema.model

        def put(connection: Connection) -> None:
            there = connection.execute(
                select(table.c.source).where(table.c.fingerprint == model.fingerprint)
            ).first()
            if there is None:
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
            elif there.source != model.source:
                # The same weights somewhere else: the old place may be gone.
                connection.execute(
                    update(table)
                    .where(table.c.fingerprint == model.fingerprint)
                    .values(source=model.source)
                )
                self._things.clear()

        transact(self._engine, put)

    def _model(self, fingerprint: str) -> Model:
        wanted = select(schema.model).where(schema.model.c.fingerprint == fingerprint)
        return model_of(query(self._engine, lambda c: c.execute(wanted).one())._mapping)

    def _policy(self, row: Row[Any]) -> Policy:
        return policy_of(row._mapping, self._model(row.model_fingerprint))

    def _teacher(self, row: Row[Any]) -> Teacher:
        return teacher_of(row._mapping, self._model(row.model_fingerprint))

    def _verifier(self, row: Row[Any]) -> Verifier:
        return verifier_of(row._mapping)

    def _question(self, row: Row[Any]) -> Question:
        return question_of(row._mapping, self.verifier_by_key(row.verifier_key))

    def _stop_ids(
        self,
        model: Model,
        tokenizer: ModelTokenizer,
        stop_ids: tuple[int, ...] | None,
        stop_texts: Sequence[str],
    ) -> tuple[int, ...]:
        stops = list(model.eos_ids if stop_ids is None else stop_ids)
        check_token_ids("stop_ids", stops, model.vocab_size, tokenizer)
        for i, text in enumerate(stop_texts):
            ids = tokenizer.encode(text)
            if len(ids) != 1:
                raise InvalidArgument(
                    f"stop_texts[{i}]", f"{text!r} is {len(ids)} tokens, not one: {list(ids)}"
                )
            stops.append(ids[0])
        return tuple(sorted(set(stops)))

    def _put(
        self, table: Table, id: str, name: str | None, values: Mapping[str, Any], kind: str
    ) -> str:
        """Insert a thing unless it is there; give it the name if it has none. Returns its id."""

        def put(connection: Connection) -> None:
            if name is not None:
                owner = connection.execute(select(table.c.id).where(table.c.name == name)).scalar()
                if owner not in (None, id):
                    raise AlreadyExists("name", f"{name!r} is another {kind}, {owner}")
            row = connection.execute(select(table.c.name).where(table.c.id == id)).first()
            if row is None:
                connection.execute(
                    insert(table).values(id=id, name=name, created_at=time.time(), **values)
                )
            elif name is not None and row.name is None:
                connection.execute(update(table).where(table.c.id == id).values(name=name))
            elif name is not None and row.name != name:
                raise AlreadyExists(
                    "name", f"this {kind} has the name {row.name!r} already; use it or leave it out"
                )

        try:
            transact(self._engine, put)
        except IntegrityError:
            # Registered twice at once, and the other one was first: now it is there.
            transact(self._engine, put)
        self._things.pop((table.name, id), None)
        return id

    def _get(self, table: Table, kind: str, name: str, make: Callable[[Row[Any]], Thing]) -> Thing:
        key = (table.name, name)
        if key not in self._things:
            wanted = select(table).where(or_(table.c.id == name, table.c.name == name))
            row = query(self._engine, lambda c: c.execute(wanted).first())
            if row is None:
                raise NotFound(kind, name)
            self._things[key] = make(row)
        found: Thing = self._things[key]
        return found

    def _list(
        self, table: Table, size: int, after: Page | None, make: Callable[[Row[Any]], Thing]
    ) -> list[Thing]:
        wanted = select(table).order_by(table.c.created_at, table.c.id).limit(size)
        if after is not None:
            wanted = wanted.where(tuple_(table.c.created_at, table.c.id) > tuple_(*after))
        return [make(row) for row in query(self._engine, lambda c: c.execute(wanted).all())]


def _check_name(name: str | None) -> None:
    if name is not None and not 1 <= len(name) <= MAX_NAME:
        raise InvalidArgument("name", f"is not of 1 to {MAX_NAME} characters")


def _check_sampling(sampling: Sampling) -> None:
    if not 0 < sampling.temperature <= 100:
        hint = "; greedy has no gradient" if sampling.temperature == 0 else ""
        raise InvalidArgument(
            "sampling.temperature", f"{sampling.temperature} is not in (0, 100]{hint}"
        )
    if not 0 < sampling.top_p <= 1:
        raise InvalidArgument("sampling.top_p", f"{sampling.top_p} is not in (0, 1]")
    if sampling.top_k < 0:
        raise InvalidArgument("sampling.top_k", f"{sampling.top_k} is below 0")


def _check_window(
    prompt: RenderedPrompt, room: int, model: Model, owner: str, question_id: str
) -> None:
    needed = len(prompt.tokens) + room
    if needed > model.max_context:
        raise FailedPrecondition(
            f"the prompt of {owner} for {question_id} has {len(prompt.tokens)} tokens; with "
            f"{room} more that is {needed}, and the model takes {model.max_context}"
        )
    if not prompt.tokens:
        raise FailedPrecondition(f"the prompt of {owner} for {question_id} is empty")
