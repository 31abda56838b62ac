"""What people train with: the losses, their forms and their settings."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass


class Loss(enum.Enum):
    """A loss at a node. P is the student, T the teacher, over the same tokens."""

    FORWARD_KL = "forward_kl"
    """KL(T|P): GKD with beta = 0 in TRL."""
    REVERSE_KL = "reverse_kl"
    """KL(P|T): GKD with beta = 1 in TRL; sampled, the on-policy distillation recipe."""
    JSD = "jsd"
    """beta KL(T|M) + (1 - beta) KL(P|M) with M = beta T + (1 - beta) P: GKD in between."""
    GRPO = "grpo"
    """Policy gradient with advantage (r - mean r) / std r."""
    DR_GRPO = "dr_grpo"
    """Policy gradient with advantage r - mean r."""
    MINILLM = "minillm"
    """Reverse KL of whole continuations, by policy gradient: a token answers for the log-ratios of
    all that follow it."""


class Form(enum.Enum):
    """Which step of a loss."""

    EXPECTED = "expected"
    """The gradient over all next tokens."""
    SAMPLED = "sampled"
    """The step that one observed token y makes: A (e_y - P)."""


class Rest(enum.Enum):
    """What becomes of the tokens outside of a loss's top k."""

    TAIL = "tail"
    """They are one bucket with its own probability under each model."""
    RENORMALIZED = "renormalized"
    """They are left out, and both distributions renormalised over the k."""
    DROPPED = "dropped"
    """Their terms are left out of the sum; nothing is renormalised."""


class TopKOf(enum.Enum):
    """Whose likeliest tokens a loss is restricted to."""

    TEACHER = "teacher"
    STUDENT = "student"


DIVERGENCES = (Loss.FORWARD_KL, Loss.REVERSE_KL, Loss.JSD)
POLICY_GRADIENTS = (Loss.GRPO, Loss.DR_GRPO)


@dataclass(frozen=True, slots=True)
class Algorithm:
    """A loss with its settings. Two that are equal give the same numbers.

    Raises:
        ValueError: a setting is out of range, or is none of this loss's; says which.

    """

    loss: Loss
    form: Form = Form.EXPECTED
    beta: float = 0.5
    """JSD only, in [0, 1]. As in TRL, 0 is taken as forward and 1 as reverse KL: the formula
    itself is zero there, its direction tends to theirs."""
    temperature: float = 1.0
    """Divergences only: of the student's and the teacher's softmax inside the loss; > 0. Policy
    gradients, rewards among them, are of the policy as it samples."""
    top_k: int = 0
    """Divergences only: how many tokens enter the loss one by one; 0 is all."""
    top_k_of: TopKOf = TopKOf.TEACHER
    """With `top_k`: whose likeliest."""
    rest: Rest = Rest.TAIL
    """With `top_k`: what becomes of the others."""
    ratio_clip: float = 0.0
    """REVERSE_KL and MINILLM: log T - log P of a token is cut to at most so much either way, nats;
    0 is no cut. Of MINILLM with `single_step`, the later tokens only, as its authors' code has it:
    the step's own divergence is exact there."""
    token_clip: float = 0.0
    """Divergences, EXPECTED: each token's term of the loss is cut to at most so much, nats (and has
    no gradient beyond it); 0 is no cut."""
    reward_weight: float = 0.0
    """With a teacher: this many times the step of `reward_loss` is added."""
    reward_loss: Loss = Loss.DR_GRPO
    """With `reward_weight`: GRPO or DR_GRPO."""
    student_share: float = 1.0
    """With a teacher, in [0, 1]: share of the training data that the student writes, GKD's lambda.
    The rest is the teacher's: nodes count by how often training meets them."""
    single_step: bool = True
    """MINILLM: whether the token's own log-ratio enters by its exact expectation, the paper's
    single-step decomposition; else by the sampled token, as in plain policy gradients."""
    length_normalized: bool = False
    """MINILLM: whether the sum over later tokens is divided by their number."""

    def __post_init__(self) -> None:
        for holds, problem in (
            (0.0 <= self.beta <= 1.0, f"beta {self.beta} is not in [0, 1]"),
            (_above(self.temperature, 0.0), f"temperature {self.temperature} is not above 0"),
            (self.top_k >= 0, f"top_k {self.top_k} is below 0"),
            (_least(self.ratio_clip, 0.0), f"ratio_clip {self.ratio_clip} is below 0"),
            (_least(self.token_clip, 0.0), f"token_clip {self.token_clip} is below 0"),
            (_least(self.reward_weight, 0.0), f"reward_weight {self.reward_weight} is below 0"),
            (0.0 <= self.student_share <= 1.0, f"student_share {self.student_share} not in [0, 1]"),
            (self.reward_loss in POLICY_GRADIENTS, "reward_loss is no policy gradient"),
        ):
            if not holds:
                raise ValueError(problem)
        if misfit := self.misfit():
            raise ValueError(f"{misfit[0]}: {misfit[1]}")

    def misfit(self) -> tuple[str, str] | None:
        """A setting that this loss has no use for, and why; None if there is none."""
        summed = self.loss in DIVERGENCES and self.form is Form.EXPECTED
        taught, whole = self.needs_teacher, not (self.top_k or self.token_clip)
        by_ratio = self.loss in (Loss.REVERSE_KL, Loss.MINILLM)
        by_token, sequences = "EXPECTED divergences", "MINILLM"
        for name, is_set, fits, whose in (
            ("top_k", self.top_k > 0, summed, by_token),
            ("token_clip", self.token_clip > 0.0, summed, by_token),
            ("ratio_clip", self.ratio_clip > 0.0, by_ratio and whole,
             "REVERSE_KL and MINILLM, without top_k or token_clip"),
            ("reward_weight", self.reward_weight > 0.0, taught, "losses with a teacher"),
            ("student_share", self.student_share < 1.0, taught, "losses with a teacher"),
            ("single_step", not self.single_step, self.is_sequential, sequences),
            ("length_normalized", self.length_normalized, self.is_sequential, sequences),
            ("temperature", self.temperature != 1.0, self.loss in DIVERGENCES,
             "divergences: MINILLM's later tokens are scored at 1, and a policy gradient is of the "
             "policy as it samples"),
        ):  # fmt: skip
            if is_set and not fits:
                return name, f"is for {whose}"
        return None

    @property
    def needs_teacher(self) -> bool:
        """Whether the loss compares with a teacher."""
        return self.loss not in POLICY_GRADIENTS

    @property
    def is_sequential(self) -> bool:
        """Whether a token answers for those that follow it, so that continuations are scored."""
        return self.loss is Loss.MINILLM

    @property
    def needs_group(self) -> bool:
        """Whether rewards of the question's other rollouts enter."""
        return self.loss in POLICY_GRADIENTS or self.reward_weight > 0.0

    @property
    def is_rewarded(self) -> bool:
        """Whether the outcome of the observed trajectory itself enters the step."""
        return self.needs_group and self.form is Form.SAMPLED

    @property
    def reads_path(self) -> bool:
        """Whether the teacher's probabilities of the trajectory's other tokens enter."""
        return self.student_share < 1.0 or (self.is_sequential and self.form is Form.SAMPLED)


def _above(value: float, bound: float) -> bool:
    return math.isfinite(value) and value > bound


def _least(value: float, bound: float) -> bool:
    return math.isfinite(value) and value >= bound
