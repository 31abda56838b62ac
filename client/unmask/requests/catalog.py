"""Calls of CatalogService."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from unmask.calls import Paged, Unary, itself, path
from unmask.question_files import parse_set, read_questions
from unmask.requests.refs import Ref, ref, refs, split_model
from unmask.v1 import catalog_pb2 as pb

_SERVICE = "CatalogService"

PromptStyle = Literal["chat", "raw"]
CutOrder = Literal["top_k_first", "joint"]
ControlName = Literal["flattened", "sharpened", "entropy_matched", "permuted"]
_CUT_ORDERS: dict[str | None, pb.CutOrder.ValueType] = {
    None: pb.CUT_ORDER_UNSPECIFIED,
    "top_k_first": pb.CUT_ORDER_TOP_K_FIRST,
    "joint": pb.CUT_ORDER_JOINT,
}
_STYLES = {"chat": pb.PROMPT_STYLE_CHAT, "raw": pb.PROMPT_STYLE_RAW}

VERIFIER_KINDS: dict[str, pb.VerifierKind.ValueType] = {
    name.removeprefix("VERIFIER_KIND_").lower(): number
    for name, number in pb.VerifierKind.items()
    if number
}
"""Names of the kinds of verifiers: `last_number`, `hash_answer`, `boxed`, ..."""


def register_policy(
    model: str | os.PathLike[str],
    *,
    endpoints: str | Iterable[str] = (),
    name: str = "",
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    cut_order: CutOrder | None = None,
    max_new_tokens: int = 0,
    stop_ids: Iterable[int] = (),
    stop_texts: Iterable[str] = (),
    prompt_style: PromptStyle | None = None,
    prompt_template: str = "",
) -> Unary[pb.RegisterPolicyResponse]:
    """Register a student: a checkpoint with its sampling settings.

    Args:
        model: a directory on the server in Hugging Face format; a path object is made
            absolute here. Or where SGLang serves it, see `split_model`.
        endpoints: addresses of SGLang servers that run the model, replicas of each other; empty:
            as it was registered before, else the server runs it itself.
        name: optional, unique.
        temperature: above 0; None: 1.
        top_p: in (0, 1]; None: 1, nothing is cut.
        top_k: at least 1, or 0 for no cut; None: 0.
        cut_order: `top_k_first` (transformers, vLLM) or `joint` (SGLang): what `top_p` is a share
            of where `top_k` is set too. None: as the engine has it.
        max_new_tokens: where a generation is cut off, and has failed; 0: 256.
        stop_ids: ids that end a generation; empty: the model's end tokens.
        stop_texts: texts that end one too, each exactly one token, e.g. a newline.
        prompt_style: who writes the prompt: the tokenizer's chat template or `prompt_template`.
            None: `raw` if there is a `prompt_template`, else `chat` if the tokenizer has one.
        prompt_template: for `raw`: Jinja over `content` giving the whole prompt.

    Returns:
        `policy`, new or found, and `warnings`.

    """
    folder, served = _where(model, endpoints)
    request = pb.RegisterPolicyRequest(
        name=name,
        model=folder,
        endpoints=served,
        sampling=pb.Sampling(
            temperature=temperature, top_p=top_p, top_k=top_k, cut_order=_CUT_ORDERS[cut_order]
        ),
        max_new_tokens=max_new_tokens,
        stop_ids=stop_ids,
        stop_texts=[stop_texts] if isinstance(stop_texts, str) else stop_texts,
        prompting=_prompting(prompt_style, prompt_template),
    )
    return Unary(path(_SERVICE, "RegisterPolicy"), request, pb.RegisterPolicyResponse, itself)


def get_policy(policy: Ref) -> Unary[pb.Policy]:
    """One policy, by id or name."""
    request = pb.GetPolicyRequest(policy=ref(policy))
    return Unary(path(_SERVICE, "GetPolicy"), request, pb.GetPolicyResponse, lambda r: r.policy)


def list_policies(*, page_size: int = 0) -> Paged[pb.Policy]:
    """All policies, oldest first; pages are fetched as they are needed."""
    request = pb.ListPoliciesRequest(page_size=page_size)
    return Paged(
        path(_SERVICE, "ListPolicies"), request, pb.ListPoliciesResponse, lambda r: r.policies
    )


def register_teacher(
    model: str | os.PathLike[str] = "",
    *,
    base: Ref = "",
    endpoints: str | Iterable[str] = (),
    allow_noisy: bool = False,
    name: str = "",
    context: str = "",
    context_template: str = "",
    prompt_style: PromptStyle | None = None,
    prompt_template: str = "",
    policies: Ref | Iterable[Ref] = (),
    control: ControlName | None = None,
    stored: str = "",
) -> Unary[pb.RegisterTeacherResponse]:
    """Register a teacher: a model and what it is shown beside the question; a control; or a stored
    one.

    Args:
        model: a directory on the server (a path object is made absolute here). Or where SGLang
            serves it, see `split_model`.
        base: instead, a policy: its model and its prompting, which is self-distillation. Of a
            control: the policy or teacher that it is of.
        endpoints: as for a policy; not together with `base`.
        allow_noisy: whether to take a teacher whose servers repeat themselves badly.
        name: optional, unique.
        context: a built-in context (`none`, `answer`, `hint`, `solution`, `summary`,
            `demonstration`, `contrastive`, `own_correct`, `wrong_solution`, `misleading`), or a
            name for `context_template`. Empty: `none`.
        context_template: Jinja over the question's fields giving the user's message.
        prompt_style: as for a policy; None: the policy's own, if there is one.
        prompt_template: as for a policy.
        policies: students it will teach; at least one, unless there is a `base`.
        control: registers a control teacher: `flattened` or `sharpened`, of the policy that `base`
            names, or `entropy_matched` or `permuted`, of the teacher that it names. Nothing but a
            name is given beside these.
        stored: registers a stored teacher, of whom only what `put_teacher_distributions` puts is
            known: where that comes from, e.g. a model's name. Without a `model`; its ids are those
            of the tokenizer of `policies`.

    Returns:
        `teacher`, new or found, and `warnings`.

    """
    of_teacher = control in ("entropy_matched", "permuted")
    folder, served = _where(model, endpoints)
    request = pb.RegisterTeacherRequest(
        name=name,
        model=folder,
        base_policy="" if of_teacher else ref(base),
        base_teacher=ref(base) if of_teacher else "",
        control=pb.Control.Value(f"CONTROL_{(control or 'unspecified').upper()}"),
        stored=stored,
        endpoints=served,
        allow_noisy=allow_noisy,
        context=_context(context, context_template),
        prompting=_prompting(prompt_style, prompt_template),
        policies=refs(policies),
    )
    return Unary(path(_SERVICE, "RegisterTeacher"), request, pb.RegisterTeacherResponse, itself)


def get_teacher(teacher: Ref) -> Unary[pb.Teacher]:
    """One teacher, by id or name."""
    request = pb.GetTeacherRequest(teacher=ref(teacher))
    return Unary(path(_SERVICE, "GetTeacher"), request, pb.GetTeacherResponse, lambda r: r.teacher)


def list_teachers(*, page_size: int = 0) -> Paged[pb.Teacher]:
    """All teachers, oldest first; pages are fetched as they are needed."""
    request = pb.ListTeachersRequest(page_size=page_size)
    return Paged(
        path(_SERVICE, "ListTeachers"), request, pb.ListTeachersResponse, lambda r: r.teachers
    )


def put_teacher_distributions(
    teacher: Ref,
    distributions: os.PathLike[str] | bytes | Iterable[Mapping[str, Any] | pb.TeacherDistribution],
    *,
    first_line: int = 1,
) -> Unary[pb.PutTeacherDistributionsResponse]:
    """Put next-token distributions of a stored teacher: all of the request's, or none.

    Args:
        teacher: registered with `stored`.
        distributions: the path of a JSONL file, JSONL as bytes, or one mapping for each node:
            `question` and `prefix` (token ids), or `trajectory` and `position`; `ids` and their
            `logprobs`.
        first_line: number of the first line of JSONL given as bytes, for errors.

    Returns:
        How many nodes were `added`, and how many were `known`.

    Raises:
        OSError: the file cannot be read.
        TypeError, ValueError: a mapping's field is unknown or not of its kind.

    """
    request = pb.PutTeacherDistributionsRequest(teacher=ref(teacher), first_line=first_line)
    if isinstance(distributions, os.PathLike):
        distributions = Path(distributions).read_bytes()
    if isinstance(distributions, bytes):
        request.jsonl = distributions
    else:
        request.distributions.extend(
            one if isinstance(one, pb.TeacherDistribution) else pb.TeacherDistribution(**one)
            for one in distributions
        )
    return Unary(
        path(_SERVICE, "PutTeacherDistributions"),
        request,
        pb.PutTeacherDistributionsResponse,
        itself,
    )


def preview_prompt(
    question: Ref, *, policy: Ref = "", teacher: Ref = ""
) -> Unary[pb.PreviewPromptResponse]:
    """The prompts that a policy and a teacher are given for a question: `policy`, `teacher`.

    Each has `text`, `tokens` and `warnings`. A teacher that is shown the policy's own rollout needs
    the policy named, too.
    """
    request = pb.PreviewPromptRequest(
        question=ref(question), policy=ref(policy), teacher=ref(teacher)
    )
    return Unary(path(_SERVICE, "PreviewPrompt"), request, pb.PreviewPromptResponse, itself)


def register_questions(
    questions: str
    | os.PathLike[str]
    | bytes
    | pb.ReasoningGymSet
    | Iterable[Mapping[str, Any] | pb.QuestionSpec],
    *,
    verifier: Ref = "",
    task: str = "",
) -> Unary[list[pb.RegisteredQuestion]]:
    """Register questions; each one succeeds or fails by itself.

    Args:
        questions: the path of what `read_questions` reads (JSONL, JSON, a directory of these, ...),
            a set as `parse_set` reads it (`reasoning-gym:chain_sum?size=50`), JSONL as bytes, or
            one mapping for each question with `question`, `answer` and whatever else contexts use;
            `name` and `prompt_tokens` are taken out of it.
        verifier: grades them; empty: what suits each, see `RegisterQuestionsRequest.verifier`.
        task: the field `task` of questions that have none.

    Returns:
        One result for each question: `index` (its place from 0, or its line in JSONL from 1) with
        either `question` or `error`.

    Raises:
        OSError: the file cannot be read.
        ValueError: a file of an unknown kind, no JSON, or a mapping's value is no text and no
            number.

    """
    request = pb.RegisterQuestionsRequest(verifier=ref(verifier), task=task)
    if isinstance(questions, str):
        questions = parse_set(questions) or Path(questions)
    if isinstance(questions, bytes):
        request.jsonl = questions
    elif isinstance(questions, pb.ReasoningGymSet):
        request.reasoning_gym.CopyFrom(questions)
    elif isinstance(questions, os.PathLike):
        request.jsonl = read_questions(questions).jsonl
    else:
        request.questions.extend(_question(i, given) for i, given in enumerate(questions))
    return Unary(
        path(_SERVICE, "RegisterQuestions"),
        request,
        pb.RegisterQuestionsResponse,
        lambda r: list(r.results),
    )


def get_question(question: Ref) -> Unary[pb.Question]:
    """One question, by id or name."""
    request = pb.GetQuestionRequest(question=ref(question))
    return Unary(
        path(_SERVICE, "GetQuestion"), request, pb.GetQuestionResponse, lambda r: r.question
    )


def list_questions(*, page_size: int = 0) -> Paged[pb.Question]:
    """All questions, oldest first; pages are fetched as they are needed."""
    request = pb.ListQuestionsRequest(page_size=page_size)
    return Paged(
        path(_SERVICE, "ListQuestions"), request, pb.ListQuestionsResponse, lambda r: r.questions
    )


def register_verifier(
    kind: str | pb.VerifierKind.ValueType,
    *,
    name: str = "",
    options: Mapping[str, str | float] | None = None,
) -> Unary[pb.Verifier]:
    """Register a verifier. The built-in ones need no registration.

    Args:
        kind: one of `VERIFIER_KINDS`, e.g. `regex`.
        name: optional, unique.
        options: for `regex` and `format` `pattern`; for `exact` `ignore_case`; for `reasoning_gym`
            `extract`; for `length` `limit`; for `external` `source`; for those that judge a text
            `truncated` (`grade`). For `objective` weights by verifiers' ids or names.

    Raises:
        ValueError: no such kind.

    """
    if isinstance(kind, str):
        if kind not in VERIFIER_KINDS:
            raise ValueError(f"kind: {kind!r} is none of {', '.join(VERIFIER_KINDS)}")
        kind = VERIFIER_KINDS[kind]
    texts = {key: str(value) for key, value in (options or {}).items()}
    request = pb.RegisterVerifierRequest(name=name, kind=kind, options=texts)
    return Unary(
        path(_SERVICE, "RegisterVerifier"),
        request,
        pb.RegisterVerifierResponse,
        lambda r: r.verifier,
    )


def list_verifiers(*, page_size: int = 0) -> Paged[pb.Verifier]:
    """All verifiers, oldest first; pages are fetched as they are needed."""
    request = pb.ListVerifiersRequest(page_size=page_size)
    return Paged(
        path(_SERVICE, "ListVerifiers"), request, pb.ListVerifiersResponse, lambda r: r.verifiers
    )


def _where(model: str | os.PathLike[str], endpoints: str | Iterable[str]) -> tuple[str, list[str]]:
    given = [endpoints] if isinstance(endpoints, str) else list(endpoints)
    if isinstance(model, os.PathLike):
        return os.path.abspath(model), given
    folder, served = split_model(model)
    return folder, given or served


def _context(name: str, template: str) -> pb.Context | None:
    return pb.Context(name=name, template=template) if name or template else None


def _prompting(style: PromptStyle | None, template: str) -> pb.Prompting | None:
    if style is None and not template:
        return None
    return pb.Prompting(style=_STYLES[style or "raw"], template=template)


def _question(index: int, given: Mapping[str, Any] | pb.QuestionSpec) -> pb.QuestionSpec:
    if isinstance(given, pb.QuestionSpec):
        return given
    rest = {key: value for key, value in given.items() if value is not None}
    spec = pb.QuestionSpec(name=rest.pop("name", ""), prompt_tokens=rest.pop("prompt_tokens", ()))
    for key, value in rest.items():
        if not isinstance(value, str | int | float):
            raise ValueError(f"questions[{index}].{key}: {type(value).__name__} is no text")
        spec.fields[key] = str(value)
    return spec
