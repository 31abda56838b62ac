"""The things of the catalog."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from unmask_server.engines.base import Sampling


class PromptStyle(enum.Enum):
    """Who writes the prompt around a message."""

    CHAT = "chat"
    """The tokenizer's chat template, with one user message and the generation prompt."""
    RAW = "raw"
    """A Jinja template over `content`."""


@dataclass(frozen=True, slots=True)
class Prompting:
    """How a message becomes prompt tokens."""

    style: PromptStyle
    template: str | None = None
    """For RAW; None is `{{ content }}`."""


@dataclass(frozen=True, slots=True)
class Model:
    """A checkpoint in Hugging Face format."""

    fingerprint: str
    """Of weights, configuration and tokenizer; 32 hexadecimal digits."""
    source: str
    """Its directory."""
    architecture: str
    vocab_size: int
    """Columns of its logits."""
    max_context: int
    """Prompt and generation together, in tokens."""
    tokenizer_fingerprint: str
    """Of the map from ids to tokens."""
    eos_ids: tuple[int, ...]
    endpoints: tuple[str, ...] = ()
    """SGLang servers that run it, replicas of each other; empty: it is run here."""
    serving: Mapping[str, Any] | None = field(default=None, hash=False)
    """What they were found to be: `engines.sglang.Serving` as JSON."""

    @property
    def noise(self) -> float:
        """How badly its log-probabilities repeat, in nats; 0 where it is run here."""
        return float(self.serving["noise"]) if self.serving else 0.0


@dataclass(frozen=True, slots=True)
class Policy:
    """A student: a checkpoint with its sampling settings."""

    id: str
    name: str | None
    model: Model
    sampling: Sampling
    max_new_tokens: int
    """Counted from the question's end; a generation that reaches it is truncated."""
    stop_ids: tuple[int, ...]
    prompting: Prompting
    created_at: float


class Control(enum.Enum):
    """How a control teacher is made: from the student, and knowing nothing of success."""

    FLATTENED = "flattened"
    """The student, T proportional to P^(1/2)."""
    SHARPENED = "sharpened"
    """The student, T proportional to P^(3/2)."""
    ENTROPY_MATCHED = "entropy_matched"
    """The student, flattened or sharpened at every node to the entropy of another teacher there."""
    PERMUTED = "permuted"
    """Another teacher, its log-ratios to the student permuted among tokens of like probability."""

    @property
    def needs_base(self) -> bool:
        """Whether there is another teacher that it is a control of."""
        return self in (Control.ENTROPY_MATCHED, Control.PERMUTED)


@dataclass(frozen=True, slots=True)
class Teacher:
    """A model and a context."""

    id: str
    name: str | None
    model: Model
    context: str
    """Name of the context."""
    template: str
    """Jinja over the question's fields."""
    prompting: Prompting
    created_at: float
    control: Control | None = None
    """None for a model of its own."""
    base: Teacher | None = None
    """What a control is of, if it is of a teacher; it shares its model, context and prompting."""
    stored: str | None = None
    """Where its distributions come from, if they were put and no model is asked: its `model` is a
    student's then, and only says what ids mean. It has no context and no prompt."""

    @property
    def scored(self) -> Teacher | None:
        """Whose probabilities count: its own or its base's; None where the student says all."""
        return self if self.control is None else self.base

    @property
    def is_stored(self) -> bool:
        """Whether these are stored ones, known only where they were put."""
        return self.scored is not None and self.scored.stored is not None


class VerifierKind(enum.Enum):
    """What a verifier looks for."""

    LAST_NUMBER = "last_number"
    HASH_ANSWER = "hash_answer"
    BOXED = "boxed"
    EXACT = "exact"
    REGEX = "regex"
    MATH_VERIFY = "math_verify"
    REASONING_GYM = "reasoning_gym"
    FORMAT = "format"
    LENGTH = "length"
    EXTERNAL = "external"
    OBJECTIVE = "objective"

    @property
    def is_fractional(self) -> bool:
        """Whether its rewards usually lie between 0 and 1, not at them."""
        return self in (VerifierKind.LENGTH, VerifierKind.EXTERNAL, VerifierKind.OBJECTIVE)

    @property
    def compares(self) -> bool:
        """Whether it holds a text against a reference answer, so that 1 means correct."""
        return self not in (
            VerifierKind.FORMAT,
            VerifierKind.LENGTH,
            VerifierKind.EXTERNAL,
            VerifierKind.OBJECTIVE,
        )


@dataclass(frozen=True, slots=True)
class Verifier:
    """How a text becomes a reward in [0, 1]."""

    id: str
    key: int
    """Small; names it in the statistics."""
    name: str | None
    kind: VerifierKind
    version: int
    """Of the grading code: outcomes of different versions are kept apart."""
    options: Mapping[str, str]
    created_at: float
    terms: tuple[tuple[Verifier, float], ...] = ()
    """Of an OBJECTIVE: what is summed, with weights; none of them is an objective itself."""

    @property
    def grades_truncated(self) -> bool:
        """Whether a generation that was cut off is graded like any other; else it has failed."""
        return self.options.get("truncated") == "grade"

    @property
    def externals(self) -> tuple[Verifier, ...]:
        """The verifiers in it whose numbers are a client's: what is sampled anew has none."""
        if self.kind is VerifierKind.EXTERNAL:
            return (self,)
        return tuple(part for part, _ in self.terms if part.kind is VerifierKind.EXTERNAL)

    @property
    def scale(self) -> float:
        """An objective's largest value less its least: what a reward of 1 is, in its units; > 0."""
        return math.fsum(abs(weight) for _, weight in self.terms) if self.terms else 1.0

    @property
    def offset(self) -> float:
        """An objective's least value: what a reward of 0 is, in its units."""
        return math.fsum(min(0.0, weight) for _, weight in self.terms)

    def weighed(self, rewards: Sequence[float]) -> float:
        """An objective's reward in [0, 1] from those of its terms, in their order."""
        total = math.fsum(
            weight * reward for (_, weight), reward in zip(self.terms, rewards, strict=True)
        )
        return min(1.0, max(0.0, (total - self.offset) / self.scale))


@dataclass(frozen=True, slots=True)
class Question:
    """A task with a reference answer."""

    id: str
    name: str | None
    fields: Mapping[str, Any]
    """`question`, `answer` and whatever else contexts use."""
    prompt_tokens: tuple[int, ...] | None
    """The prompt as ids, if it was given as such."""
    verifier: Verifier
    created_at: float


@dataclass(frozen=True, slots=True)
class QuestionSpec:
    """A question to register."""

    name: str | None
    fields: Mapping[str, Any]
    prompt_tokens: tuple[int, ...] | None = None
    suited: str | None = None
    """Built-in verifier that suits it, where none is named; None: `last_number`."""


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One generation."""

    id: str
    policy_id: str
    question_id: str
    tokens: tuple[int, ...]
    """The stop token included."""
    finish: int
    """0 stop, 1 length, 2 not known."""
    seed: int | None
    ordinal: int | None
    rollout_uid: bytes | None
    """Its rollout in the tree; None if it was submitted."""
    rewards: Mapping[int, float]
    """By verifier key."""
    created_at: float


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    """A prompt as a model gets it."""

    text: str
    tokens: tuple[int, ...]
    warnings: tuple[str, ...] = field(default=())
