"""`unmask policy`, `unmask teacher`, `unmask question`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, cast, get_args

import typer
from rich.text import Text

from unmask.cli.connect import connected, fail, model_argument, say, stdout
from unmask.cli.numbers import clip, count
from unmask.cli.sources import QUESTIONS, question_error, registered
from unmask.cli.tables import key_values, table
from unmask.client import Client
from unmask.requests.catalog import ControlName
from unmask.v1 import catalog_pb2 as pb

policies = typer.Typer(help="Students: checkpoints with their sampling settings.")
teachers = typer.Typer(help="Teachers: models and what they are shown beside the question.")
questions = typer.Typer(help="Questions with reference answers.")

_PART_BYTES, _PART_LINES = 1 << 20, 5000
"""Of a file, sent at once."""
_ESCAPES = {"\\n": "\n", "\\t": "\t", "\\r": "\r"}

Template = Annotated[
    Path | None,
    typer.Option(
        "--prompt-template",
        metavar="FILE",
        help="Jinja over `content` giving the whole prompt, instead of the chat template.",
        exists=True,
        dir_okay=False,
    ),
]
StopTexts = Annotated[
    list[str] | None,
    typer.Option(
        "--stop-text",
        help="A text that ends a generation, one token, e.g. '\\n'; may be given several times.",
    ),
]


SERVED = ", or the SGLang servers that run it: http://HOST:PORT[,…] or DIR@http://HOST:PORT[,…]"


def unescape(text: str) -> str:
    """`\\n`, `\\t` and `\\r` as shells leave them."""
    for escape, char in _ESCAPES.items():
        text = text.replace(escape, char)
    return text


def read(file: Path | None) -> str:
    """A template; empty without a file."""
    return file.read_text(encoding="utf-8") if file else ""


@policies.command("register")
@connected
def register_policy(
    client: Client,
    model: Annotated[str, typer.Argument(help=f"A directory in Hugging Face format{SERVED}.")],
    name: Annotated[str, typer.Option(help="How to call it from now on.")] = "",
    temperature: Annotated[float | None, typer.Option(help="Above 0; default 1.")] = None,
    top_p: Annotated[float | None, typer.Option(help="In (0, 1]; default 1.")] = None,
    top_k: Annotated[int | None, typer.Option(help="0, the default: no cut.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Length of a generation; 0: 256.")] = 0,
    stop_text: StopTexts = None,
    prompt_template: Template = None,
) -> None:
    """Register a student."""
    answer = client.register_policy(
        model_argument(model),
        name=name,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        max_new_tokens=max_new_tokens,
        stop_texts=[unescape(text) for text in stop_text or ()],
        prompt_template=read(prompt_template),
    )
    _warn(answer.warnings)
    _show_policy(answer.policy)


@policies.command("list")
@connected
def list_policies(client: Client) -> None:
    """List students, oldest first."""
    made = table("id", "name", "model", ">T", ">tokens")
    for policy in client.list_policies():
        made.add_row(
            policy.id,
            policy.name,
            _short(policy.model.source),
            f"{policy.sampling.temperature:g}",
            count(policy.max_new_tokens),
        )
    stdout().print(made)


@teachers.command("register")
@connected
def register_teacher(
    client: Client,
    model: Annotated[
        str,
        typer.Argument(
            help=f"A directory in Hugging Face format{SERVED}.",
            show_default=False,
        ),
    ] = "",
    name: Annotated[str, typer.Option(help="How to call it from now on.")] = "",
    policy: Annotated[
        list[str] | None, typer.Option(help="A student it will teach, unless there is a --base.")
    ] = None,
    base: Annotated[
        str,
        typer.Option(
            help="Instead of MODEL: a policy, the student itself then (self-distillation). With "
            "--control: what it is of."
        ),
    ] = "",
    context: Annotated[
        str,
        typer.Option(
            help="none, answer, hint, solution, summary, demonstration, contrastive, own_correct, "
            "wrong_solution, misleading, or a name of your own."
        ),
    ] = "",
    context_template: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="For a context of your own: Jinja over the question's fields.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    prompt_template: Template = None,
    allow_noisy: Annotated[
        bool, typer.Option("--allow-noisy", help="Take it though its servers disagree.")
    ] = False,
    control: Annotated[
        str | None,
        typer.Option(
            help="Register a control instead: flattened or sharpened, of a policy; entropy_matched "
            "or permuted, of a teacher."
        ),
    ] = None,
    stored: Annotated[
        str,
        typer.Option(
            metavar="SOURCE",
            help="Register a stored teacher instead, without a MODEL: what it said is put by "
            "`unmask teacher load`; this says where that comes from.",
        ),
    ] = "",
) -> None:
    """Register a teacher, a control of one, or one that only a file knows."""
    if not (model or base or stored):
        fail("give a MODEL, --base or --stored")
    if control is not None and control not in get_args(ControlName):
        fail(f"--control {control}: give one of {', '.join(get_args(ControlName))}")
    answer = client.register_teacher(
        model_argument(model) if model else "",
        base=base,
        name=name,
        context=context,
        context_template=read(context_template),
        prompt_template=read(prompt_template),
        policies=policy or (),
        allow_noisy=allow_noisy,
        control=cast("ControlName | None", control),
        stored=stored,
    )
    _warn(answer.warnings)
    teacher = answer.teacher
    stdout().print(
        key_values(
            [
                ("teacher", teacher.id),
                ("name", teacher.name),
                *_source(teacher),
            ]
        )
    )


@teachers.command("load")
@connected
def load_teacher(
    client: Client,
    teacher: Annotated[str, typer.Argument(help="Id or name of a stored teacher.")],
    file: Annotated[
        Path,
        typer.Argument(
            help="JSONL: `question` and `prefix` (token ids), or `trajectory` and `position`; then "
            "`ids` and `logprobs` of the next token.",
            exists=True,
            dir_okay=False,
        ),
    ],
) -> None:
    """Put what a stored teacher said; loading the same again is harmless."""
    added = known = 0
    for first, lines in _parts(file):
        answer = client.put_teacher_distributions(teacher, lines, first_line=first)
        added, known = added + answer.added, known + answer.known
    stdout().print(key_values([("nodes added", count(added)), ("known before", count(known))]))


def _parts(file: Path) -> Iterator[tuple[int, bytes]]:
    """The file in parts that fit a call: (number of the first line, lines)."""
    first, size, lines = 1, 0, list[bytes]()
    with file.open("rb") as opened:
        for number, line in enumerate(opened, start=1):
            if lines and (size + len(line) > _PART_BYTES or len(lines) == _PART_LINES):
                yield first, b"".join(lines)
                first, size, lines = number, 0, []
            size += len(line)
            lines.append(line)
    if any(map(bytes.strip, lines)) or first == 1:
        yield first, b"".join(lines)


@teachers.command("list")
@connected
def list_teachers(client: Client) -> None:
    """List teachers, oldest first."""
    made = table("id", "name", "model", "context", "control")
    for teacher in client.list_teachers():
        control = pb.Control.Name(teacher.control).removeprefix("CONTROL_").lower()
        made.add_row(
            teacher.id,
            teacher.name,
            teacher.stored or _short(teacher.model.source),
            teacher.context.name,
            control if teacher.control else "",
        )
    stdout().print(made)


@questions.command("register")
@connected
def register_questions(
    client: Client,
    source: Annotated[str, typer.Argument(metavar="QUESTIONS", help=QUESTIONS)],
    verifier: Annotated[
        str, typer.Option(help="Grades them; by default what suits each of them.")
    ] = "",
    task: Annotated[str, typer.Option(help="The field `task` of those that have none.")] = "",
    max_questions: Annotated[
        int | None, typer.Option(help="Only the first so many.", min=1)
    ] = None,
) -> None:
    """Register questions. Those that cannot be used are named; the others are registered."""
    refused, total = 0, 0
    for origin, result in registered(
        client, source, verifier=verifier, task=task, most=max_questions
    ):
        total += 1
        if result.HasField("error"):
            refused += 1
            say(f"{origin}: {question_error(result)}")
        else:
            typer.echo(result.question.id)
    if refused:
        fail(f"{refused} of {total} questions were refused")


@questions.command("list")
@connected
def list_questions(client: Client) -> None:
    """List questions, oldest first."""
    made = table("id", "name", "question", "answer")
    for question in client.list_questions():
        made.add_row(
            question.id,
            question.name,
            Text(clip(question.fields.get("question", ""), 32)),
            Text(clip(question.fields.get("answer", ""), 12)),
        )
    stdout().print(made)


@connected
def preview(
    client: Client,
    question: Annotated[str, typer.Argument(help="Id or name.")],
    policy: Annotated[str | None, typer.Option(help="What this student is given.")] = None,
    teacher: Annotated[str | None, typer.Option(help="What this teacher is given.")] = None,
) -> None:
    """Print the whole prompt of a student, of a teacher or of both for a question."""
    answer = client.preview_prompt(question, policy=policy or "", teacher=teacher or "")
    both = bool(policy and teacher)
    for reader in ("policy", "teacher"):
        if not answer.HasField(reader):
            continue
        shown: pb.RenderedPrompt = getattr(answer, reader)
        _warn(shown.warnings)
        if both:
            say(f"what the {reader} is given, {len(shown.tokens)} tokens:")
        typer.echo(shown.text)
        if not both:
            say(f"{len(shown.tokens)} tokens")


def _show_policy(policy: pb.Policy) -> None:
    sampling = policy.sampling
    cuts = [f"temperature {sampling.temperature:g}"]
    if sampling.HasField("top_p") and sampling.top_p < 1:
        cuts.append(f"top-p {sampling.top_p:g}")
    if sampling.top_k:
        cuts.append(f"top-k {sampling.top_k}")
    stdout().print(
        key_values(
            [
                ("policy", policy.id),
                ("name", policy.name),
                ("model", policy.model.source),
                *_served(policy.model),
                ("architecture", policy.model.architecture),
                ("sampling", ", ".join(cuts)),
                ("at most", f"{policy.max_new_tokens} tokens"),
                ("stops at", ", ".join(map(str, policy.stop_ids))),
            ]
        )
    )


def _served(model: pb.Model) -> list[tuple[str, str]]:
    """Where SGLang runs a model, and how well its servers repeat themselves."""
    if not model.endpoints:
        return []
    serving = model.serving
    return [
        ("served at", ", ".join(model.endpoints)),
        ("weights", serving.weight_version),
        ("noise", f"{serving.noise:.2g} nats"),
    ]


def _source(teacher: pb.Teacher) -> list[tuple[str, str]]:
    """Whence a teacher's probabilities come."""
    if not teacher.HasField("model"):
        return [("stored", teacher.stored)] if teacher.stored else []
    return [
        ("model", teacher.model.source),
        *_served(teacher.model),
        ("context", teacher.context.name),
    ]


def _warn(warnings: object) -> None:
    for warning in warnings:  # type: ignore[attr-defined]
        say(f"warning: {warning}")


def _short(source: str) -> str:
    parts = Path(source).parts
    return str(Path(*parts[-2:])) if len(parts) > 2 else source
