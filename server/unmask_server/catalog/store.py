"""The catalog: what things are, registered once and found by id or name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from sqlalchemy import Engine, select

from unmask_server.access.sources import ANYWHERE, Sources
from unmask_server.catalog.adopt import Adopter
from unmask_server.catalog.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
)
from unmask_server.catalog.models import Models
from unmask_server.catalog.objectives import objective_options, parse_weight
from unmask_server.catalog.prompting import choose_prompting, render_prompt
from unmask_server.catalog.prompts import Prompts
from unmask_server.catalog.records import MAX_NAME, Entry, Page, Records, check_name
from unmask_server.catalog.rows import (
    digest,
    policy_of,
    policy_values,
    question_of,
    teacher_of,
    teacher_values,
    verifier_of,
    verifier_values,
)
from unmask_server.catalog.settings import (
    check_sampling,
    choose_cuts,
    choose_stop_ids,
    question_entry,
    serving_warnings,
)
from unmask_server.catalog.templates import BUILT_IN_CONTEXTS, context_template
from unmask_server.catalog.tokenizer import ModelTokenizer
from unmask_server.catalog.trajectories import TrajectoryStore
from unmask_server.catalog.types import (
    Control,
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
    Grader,
    canonical_options,
    check_options,
    reference_problem,
    version_of,
)
from unmask_server.database import schema
from unmask_server.database.connect import query
from unmask_server.database.rows import AnyRow
from unmask_server.engines.base import Sampling
from unmask_server.reasons import Reason
from unmask_server.remembered import Remembered

DEFAULT_MAX_NEW_TOKENS = 256
DEFAULT_VERIFIER = VerifierKind.LAST_NUMBER.value
_REMEMBERED = 20_000
"""Of each kind of thing that is remembered by number."""
_TOLD = 1000
"""Characters that are kept of why something cannot be graded."""
_BUILT_IN_NAMES = frozenset(kind.value for kind in BUILT_IN)


class Catalog:
    """Models, policies, teachers, verifiers and questions. Callable from threads.

    An id is the fingerprint of what a thing is, so registering it again finds it; a name is the
    client's, unique among its kind, and can be used wherever an id can. Nothing is ever deleted,
    and nothing changes but the directory of a model that was found elsewhere; another replica
    learns of that when it starts anew.
    """

    def __init__(self, engine: Engine, grader: Grader, sources: Sources = ANYWHERE) -> None:
        self._engine = engine
        self._grader = grader
        self._records = Records(engine)
        self._models = Models(engine, sources)
        self._prompts = Prompts(self._models, self.get_question)
        self._verifiers = Remembered[int, Verifier](_REMEMBERED)
        self._built_in: dict[str, str] = {}
        self._objectives = Remembered[tuple[tuple[str, str], ...], str](_REMEMBERED)
        self._gradeable = Remembered[tuple[int, str], tuple[str | None]](_REMEMBERED)
        self.trajectories = TrajectoryStore(engine)
        self.adopter = Adopter(self._records, self._models, self.get_verifier)
        self.gym = grader.gym

    # ------------------------------------------------------------------------------ policies

    def register_policy(
        self,
        *,
        path: str,
        endpoints: Sequence[str] = (),
        name: str | None,
        sampling: Sampling,
        joint: bool | None = None,
        max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS,
        stop_ids: tuple[int, ...] | None = None,
        stop_texts: Sequence[str] = (),
        prompting: Prompting | None = None,
    ) -> tuple[Policy, list[str]]:
        """Register a student. Returns it, and warnings.

        Args:
            path: the checkpoint's directory.
            endpoints: SGLang servers that run it; empty: as it was before, else it is run here.
            name: the client's, or None.
            sampling: how its generations are drawn.
            joint: see `Sampling.joint`; None: as the engine has it.
            max_new_tokens: after which a generation is cut off; in [1, context).
            stop_ids: tokens that end a generation; None for the model's own.
            stop_texts: more of them, as texts of one token each.
            prompting: how a question becomes a prompt; None as `choose_prompting` says.

        Raises:
            InvalidArgument: no checkpoint, or a setting out of range.
            FailedPrecondition: its servers run another model.
            EngineError: one of them does not answer.
            AlreadyExists: the name is another policy's.

        """
        check_name(name)
        check_sampling(sampling)
        model, tokenizer = self._open(path, endpoints)
        sampling = choose_cuts(sampling, joint, is_served=bool(model.endpoints))
        stops = choose_stop_ids(model, tokenizer, stop_ids, stop_texts)
        if not 1 <= max_new_tokens < model.max_context:
            raise InvalidArgument(
                "max_new_tokens",
                f"{max_new_tokens} is not in 1 to {model.max_context - 1}, the model's context",
            )
        chosen = choose_prompting(prompting, tokenizer, "prompting")
        warnings = [*_trial(chosen, tokenizer), *serving_warnings(model)]
        if not stops:
            warnings.append("no stop token: every generation runs to max_new_tokens and has failed")
        values = policy_values(model, sampling, max_new_tokens, stops, chosen)
        policy_id = self._records.put(schema.policy, Entry("pol-" + digest(values), name, values))
        return self.get_policy(policy_id), warnings

    def get_policy(self, name: str) -> Policy:
        """A policy by id or name. Raises NotFound."""
        return self._records.get(schema.policy, name, self._policy)

    def list_policies(self, size: int, after: Page | None) -> list[Policy]:
        """A page, oldest first."""
        return self._records.page(schema.policy, size, after, self._policy)

    # ------------------------------------------------------------------------------ teachers

    def register_teacher(
        self,
        *,
        path: str,
        endpoints: Sequence[str] = (),
        of: Policy | None = None,
        name: str | None,
        context: str,
        template: str | None,
        prompting: Prompting | None,
        students: Sequence[Policy],
        max_noise: float = math.inf,
    ) -> tuple[Teacher, list[str]]:
        """Register a teacher. Returns it, and warnings.

        Args:
            path: the checkpoint's directory.
            endpoints: SGLang servers that run it; empty: as it was before, else it is run here.
            of: the policy whose model it is, instead of `path`: self-distillation.
            name: the client's, or None.
            context: name of what it is shown.
            template: Jinja over the question's fields; None for the built-in one of that name.
            prompting: how that becomes a prompt; None as `choose_prompting` says.
            students: whom it will teach: its tokenizer is compared with theirs, id by id. Columns
                without a token do not matter, so vocabularies of other paddings go together.
            max_noise: in nats; a model whose servers repeat themselves worse is refused.

        Raises:
            InvalidArgument: no checkpoint, no such context.
            FailedPrecondition: its tokenizer is not a student's, it is too noisy, or its servers
                run another model.
            EngineError: one of them does not answer.
            AlreadyExists: the name is another teacher's.

        """
        check_name(name)
        text = context_template(context, template, "context")
        if of is not None:
            self.check_model_unchanged(of.model)
            model, tokenizer = of.model, self.tokenizer(of.model)
        else:
            model, tokenizer = self._open(path, endpoints)
        if model.noise > max_noise:
            raise FailedPrecondition(
                Reason.ENDPOINTS_TOO_NOISY,
                f"two scorings of one sequence differ by {model.noise:.2g} nats, more "
                f"than {max_noise:g}: its replicas may run different weights or precisions. If "
                "that is as it should be, allow_noisy takes it, with wider intervals",
                field="endpoints",
            )
        for i, student in enumerate(students):
            if differences := self.tokenizer_differences(student.model, model):
                raise FailedPrecondition(
                    Reason.TOKENIZER_MISMATCH,
                    f"policy {student.id} has another tokenizer than {path}: "
                    f"{'; '.join(differences)}",
                    field=f"policies[{i}]",
                    policy=student.id,
                )
        chosen = choose_prompting(prompting, tokenizer, "prompting")
        values = teacher_values(model, chosen, context=context, template=text)
        entry = Entry("tea-" + digest(values), name, values)
        warnings = [*_trial(chosen, tokenizer), *serving_warnings(model)]
        return self.get_teacher(self._records.put(schema.teacher, entry)), warnings

    def register_control(
        self, control: Control, *, base: Teacher | None, student: Policy | None, name: str | None
    ) -> Teacher:
        """Register a control teacher.

        Args:
            control: how it is made.
            base: the teacher it is of; for those that need one, else None.
            student: for the others: a policy.
            name: the client's, or None.

        Raises:
            InvalidArgument: `base` is itself a control.
            AlreadyExists: the name is another teacher's.

        """
        check_name(name)
        if base is not None:
            if base.control is not None:
                raise InvalidArgument("base_teacher", f"teacher {base.id} is a control itself")
            values = teacher_values(
                base.model,
                base.prompting,
                context=base.context,
                template=base.template,
                control=control,
                base_id=base.id,
            )
        else:
            assert student is not None
            values = teacher_values(
                student.model,
                student.prompting,
                context="none",
                template=BUILT_IN_CONTEXTS["none"],
                control=control,
            )
        entry = Entry("tea-" + digest(values), name, values)
        return self.get_teacher(self._records.put(schema.teacher, entry))

    def register_stored(
        self, source: str, *, students: Sequence[Policy], name: str | None
    ) -> Teacher:
        """Register a teacher of whom only what is put is known.

        Args:
            source: where that comes from.
            students: whom it will teach, at least one; its ids are the first one's.
            name: the client's, or None.

        Raises:
            InvalidArgument: `source` is too long.
            FailedPrecondition: the students have different tokenizers.
            AlreadyExists: the name is another teacher's.

        """
        check_name(name)
        if len(source) > MAX_NAME:
            raise InvalidArgument("stored", f"is longer than {MAX_NAME} characters")
        model = students[0].model
        for i, student in enumerate(students):
            if differences := self.tokenizer_differences(student.model, model):
                raise FailedPrecondition(
                    Reason.TOKENIZER_MISMATCH,
                    f"policy {student.id} has another tokenizer than policy "
                    f"{students[0].id}: {'; '.join(differences)}",
                    field=f"policies[{i}]",
                    policy=student.id,
                )
        values = teacher_values(model, students[0].prompting, stored=source)
        entry = Entry("tea-" + digest(values), name, values)
        return self.get_teacher(self._records.put(schema.teacher, entry))

    def get_teacher(self, name: str) -> Teacher:
        """A teacher by id or name. Raises NotFound."""
        return self._records.get(schema.teacher, name, self._teacher)

    def list_teachers(self, size: int, after: Page | None) -> list[Teacher]:
        """A page, oldest first."""
        return self._records.page(schema.teacher, size, after, self._teacher)

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
        check_name(name)
        if name in _BUILT_IN_NAMES:
            raise InvalidArgument("name", f"{name!r} is the built-in verifier's")
        if kind is VerifierKind.OBJECTIVE:
            found = [
                (self._term(key, f"options[{key!r}]"), parse_weight(weight, f"options[{key!r}]"))
                for key, weight in options.items()
            ]
            options = objective_options(found, "options")
        else:
            check_options(kind, options)
        return self.get_verifier(self._put_verifier(kind, options, name))

    def objective(self, terms: Sequence[tuple[Verifier, float]], field: str) -> Verifier:
        """The verifier that a weighted sum is; of one verifier with weight 1, that one.

        Raises:
            InvalidArgument: no objective, see `objective_options`.

        """
        options = objective_options(terms, field)
        if list(options.values()) == ["1.0"]:
            return self.get_verifier(next(iter(options)))
        key = tuple(options.items())
        id_ = self._objectives.get(key)
        if id_ is None:
            put = self._put_verifier(VerifierKind.OBJECTIVE, options, None)
            id_ = self._objectives.put(key, put)
        return self.get_verifier(id_)

    def get_verifier(self, name: str) -> Verifier:
        """A verifier by id, name or built-in name. Raises NotFound.

        A built-in name means the current version of its grading code.
        """
        if name in _BUILT_IN_NAMES:
            if name not in self._built_in:
                self._built_in[name] = self._put_verifier(VerifierKind(name), {}, None)
            name = self._built_in[name]
        return self._records.get(schema.verifier, name, self._verifier)

    def verifier_by_key(self, key: int) -> Verifier:
        """The verifier of a statistics key."""
        found = self._verifiers.get(key)
        if found is None:
            wanted = select(schema.verifier).where(schema.verifier.c.key == key)
            row = query(self._engine, lambda c: c.execute(wanted).one())
            found = self._verifiers.put(key, self._verifier(row))
        return found

    def ungradeable(self, verifier: Verifier, question: Question) -> str | None:
        """Why a verifier could grade nothing by a question's answer; None if it can."""
        if verifier.key == question.verifier.key:
            return None
        key = (verifier.key, question.id)
        found = self._gradeable.get(key)
        if found is None:
            problem = reference_problem(verifier, question.fields, self._grader)
            # Problems quote the reference.
            found = (problem[:_TOLD] if problem else None,)
            self._gradeable.put(key, found)
        return found[0]

    def list_verifiers(self, size: int, after: Page | None) -> list[Verifier]:
        """A page, oldest first."""
        return self._records.page(schema.verifier, size, after, self._verifier)

    # ----------------------------------------------------------------------------- questions

    def register_questions(
        self, specs: Sequence[QuestionSpec | str], verifier: Verifier | None = None
    ) -> list[Question | InvalidArgument | AlreadyExists | str]:
        """Register each by itself; what is refused (or was no question) is told in its place.

        Without a verifier each has the one that suits it: `QuestionSpec.suited`.
        """
        if verifier is not None and verifier.externals:
            raise InvalidArgument(
                "verifier", "what is sampled has no number of an EXTERNAL one yet: name it later"
            )
        results: list[Question | InvalidArgument | AlreadyExists | str] = []
        entries: dict[int, Entry] = {}
        for i, spec in enumerate(specs):
            results.append(spec if isinstance(spec, str) else "")
            if isinstance(spec, str):
                continue
            try:
                grades = verifier or self.get_verifier(spec.suited or DEFAULT_VERIFIER)
                entry = question_entry(spec, grades)
                if problem := reference_problem(grades, spec.fields, self._grader):
                    raise InvalidArgument("answer", problem)
                entries[i] = entry
            except InvalidArgument as error:
                results[i] = error
        problems = self._records.put_many(schema.question, list(entries.values()))
        refused: dict[int, AlreadyExists] = {
            i: problem for i, problem in zip(entries, problems, strict=True) if problem is not None
        }
        there = self._records.get_many(
            schema.question, [e.id for i, e in entries.items() if i not in refused], self._question
        )
        for i, entry in entries.items():
            results[i] = refused[i] if i in refused else there[entry.id]
        return results

    def get_question(self, name: str) -> Question:
        """A question by id or name. Raises NotFound."""
        return self._records.get(schema.question, name, self._question)

    def list_questions(self, size: int, after: Page | None) -> list[Question]:
        """A page, oldest first."""
        return self._records.page(schema.question, size, after, self._question)

    # ------------------------------------------------------------------------------- prompts

    def tokenizer(self, model: Model) -> ModelTokenizer:
        """A model's tokenizer. Raises: as `Models.tokenizer`."""
        return self._models.tokenizer(model)

    def check_model_unchanged(self, model: Model) -> None:
        """Refuse a model whose directory holds another by now. Raises FailedPrecondition."""
        self._models.check_unchanged(model)

    def usable_vocab(self, model: Model) -> int:
        """How many of the model's columns are tokens: what lies above is padding."""
        return min(model.vocab_size, self.tokenizer(model).limit)

    def policy_prompt(self, policy: Policy, question: Question) -> RenderedPrompt:
        """What a policy is asked.

        Raises:
            InvalidArgument: the question is given as ids that the model does not have.
            FailedPrecondition: it and a whole generation do not fit the model's context.

        """
        return self._prompts.of_policy(policy, question)

    def prompt_tokens(self, policy: Policy, question: Question) -> tuple[int, ...]:
        """The ids of `policy_prompt`."""
        return self.policy_prompt(policy, question).tokens

    def teacher_prompt(
        self,
        teacher: Teacher,
        question: Question,
        max_new_tokens: int = 0,
        *,
        own: str | None = None,
    ) -> RenderedPrompt:
        """What a teacher is shown; nothing is ever cut off.

        A question that is given as ids is shown as these by the context `none`; any other context
        needs its text. `own` is the student's own correct rollout, for contexts that show it.

        Raises:
            InvalidArgument: the question lacks a field that the context needs.
            FailedPrecondition: it and `max_new_tokens` more do not fit the teacher's context.

        """
        return self._prompts.of_teacher(teacher, question, max_new_tokens, own)

    # -------------------------------------------------------------------------------- inside

    def _open(self, path: str, endpoints: Sequence[str]) -> tuple[Model, ModelTokenizer]:
        model, tokenizer, moved = self._models.open(path, "model", endpoints)
        if moved:
            self._records.forget()
        return model, tokenizer

    def _put_verifier(
        self, kind: VerifierKind, options: Mapping[str, str], name: str | None
    ) -> str:
        values = verifier_values(kind, version_of(kind), canonical_options(options))
        return self._records.put(schema.verifier, Entry("ver-" + digest(values), name, values))

    def _policy(self, row: AnyRow) -> Policy:
        return policy_of(row._mapping, self._models.get(row.model_fingerprint))

    def _teacher(self, row: AnyRow) -> Teacher:
        base = self.get_teacher(row.base_id) if row.base_id is not None else None
        return teacher_of(row._mapping, self._models.get(row.model_fingerprint), base)

    def _verifier(self, row: AnyRow) -> Verifier:
        if row.kind != VerifierKind.OBJECTIVE.value:
            return verifier_of(row._mapping)
        terms = ((self.get_verifier(part), float(w)) for part, w in sorted(row.options.items()))
        return verifier_of(row._mapping, tuple(terms))

    def _term(self, name: str, field: str) -> Verifier:
        if not name:
            raise InvalidArgument(field, "name a verifier")
        return self.get_verifier(name)

    def _question(self, row: AnyRow) -> Question:
        return question_of(row._mapping, self.verifier_by_key(row.verifier_key))


def _trial(prompting: Prompting, tokenizer: ModelTokenizer) -> list[str]:
    """What is odd about the prompts that this will make.

    Raises:
        InvalidArgument: the chat template does not work.

    """
    return list(render_prompt(prompting, tokenizer, "1 + 1 = ?").warnings)
