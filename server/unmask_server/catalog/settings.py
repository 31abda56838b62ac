"""What a registration may say, checked before anything is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from unmask_server.catalog.errors import InvalidArgument
from unmask_server.catalog.records import Entry, check_name
from unmask_server.catalog.rows import digest, pack_tokens
from unmask_server.catalog.tokenizer import ModelTokenizer, check_token_ids
from unmask_server.catalog.types import Model, QuestionSpec, Verifier
from unmask_server.engines.base import Sampling

MIN_TEMPERATURE = 0.01
"""Below it a distribution is one token as far as floats go, and its gradient is 0."""
MAX_TEMPERATURE = 100.0
NOISE_WORTH_TELLING = 1e-2
"""In nats."""


def check_sampling(sampling: Sampling) -> None:
    """Refuse a way of sampling that is none.

    Raises:
        InvalidArgument: a parameter is out of range.

    """
    if not MIN_TEMPERATURE <= sampling.temperature <= MAX_TEMPERATURE:
        hint = "; greedy has no gradient" if sampling.temperature == 0 else ""
        raise InvalidArgument(
            "sampling.temperature",
            f"{sampling.temperature} is not in {MIN_TEMPERATURE} to {MAX_TEMPERATURE:g}{hint}",
        )
    if not 0 < sampling.top_p <= 1:
        raise InvalidArgument("sampling.top_p", f"{sampling.top_p} is not in (0, 1]")
    if sampling.top_k < 0:
        raise InvalidArgument("sampling.top_k", f"{sampling.top_k} is below 0")


def choose_cuts(sampling: Sampling, joint: bool | None, *, is_served: bool) -> Sampling:
    """Say how `top_k` and `top_p` go together, where both are set.

    Args:
        sampling: with whatever cuts.
        joint: what was asked for; None: as the engine has it.
        is_served: whether SGLang runs the model, which knows only the joint way.

    Raises:
        InvalidArgument: SGLang was asked for the other way.

    """
    if not sampling.top_k or sampling.top_p >= 1.0:
        return replace(sampling, joint=False)
    if is_served and joint is False:
        raise InvalidArgument(
            "sampling.cut_order", "SGLang cuts jointly; ask for that, or set top_p or top_k alone"
        )
    return replace(sampling, joint=is_served if joint is None else joint)


def serving_warnings(model: Model) -> list[str]:
    """What is odd about a model's SGLang servers, and noise that intervals will show."""
    remarks = list(model.serving.get("remarks", ())) if model.serving else []
    if model.noise > NOISE_WORTH_TELLING:
        remarks.append(
            f"two scorings of one sequence differ by {model.noise:.2g} nats: intervals are wider "
            "for it"
        )
    return remarks


def choose_stop_ids(
    model: Model,
    tokenizer: ModelTokenizer,
    stop_ids: Sequence[int] | None,
    stop_texts: Sequence[str],
) -> tuple[int, ...]:
    """The tokens that end a generation, ascending: the ids given or the model's own, and the texts.

    Raises:
        InvalidArgument: an id that the model does not have; a text that is not one token.

    """
    if stop_ids is None:
        stops = list(model.eos_ids)
        check_token_ids("model: its eos_token_id", stops, model.vocab_size, tokenizer)
    else:
        stops = list(stop_ids)
        check_token_ids("stop_ids", stops, model.vocab_size, tokenizer)
    for i, text in enumerate(stop_texts):
        ids = tokenizer.encode(text)
        if len(ids) != 1:
            raise InvalidArgument(
                f"stop_texts[{i}]", f"{text!r} is {len(ids)} tokens, not one: {list(ids)}"
            )
        stops.append(ids[0])
    return tuple(sorted(set(stops)))


def question_entry(spec: QuestionSpec, verifier: Verifier) -> Entry:
    """A question's row. Whether the verifier can grade it is not checked here.

    Raises:
        InvalidArgument: it asks nothing, or cannot be written down.

    """
    check_name(spec.name)
    tokens = spec.prompt_tokens
    if not tokens and not str(spec.fields.get("question", "")).strip():
        raise InvalidArgument("question", "is empty; give its text, or prompt_tokens")
    for i, token in enumerate(tokens or ()):
        if isinstance(token, bool) or not 0 <= token < 2**31:
            raise InvalidArgument(f"prompt_tokens[{i}]", f"{token} is no token id")
    fields = dict(spec.fields)
    try:
        identity = digest(fields, tokens, verifier.id)
    except UnicodeEncodeError as error:
        # Half a surrogate pair, as JSON can spell it: no tokenizer takes that.
        raise InvalidArgument("fields", f"are no Unicode text: {error.reason}") from None
    return Entry(
        id="que-" + identity,
        name=spec.name,
        values={
            "fields": fields,
            "prompt_tokens": pack_tokens(tokens) if tokens else None,
            "verifier_key": verifier.key,
        },
    )
