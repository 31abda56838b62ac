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


class Form(enum.Enum):
    """Which step of a loss."""

    EXPECTED = "expected"
    """The gradient over all next tokens."""
    SAMPLED = "sampled"
    """The step that one observed token y makes: A (e_y - P)."""


@dataclass(frozen=True, slots=True)
class Algorithm:
    """A loss with its settings. Two that are equal give the same numbers.

    Raises:
        ValueError: `beta` outside [0, 1], or `temperature` not finite and above zero.

    """

    loss: Loss
    form: Form = Form.EXPECTED
    beta: float = 0.5
    """JSD only, in [0, 1]. As in TRL, 0 is taken as forward and 1 as reverse KL: the formula
    itself is zero there, its direction tends to theirs."""
    temperature: float = 1.0
    """Of the student's and the teacher's softmax inside the loss; > 0."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.beta <= 1.0:
            raise ValueError(f"beta {self.beta} is not in [0, 1]")
        if not (math.isfinite(self.temperature) and self.temperature > 0.0):
            raise ValueError(f"temperature {self.temperature} is not finite and above 0")

    @property
    def needs_teacher(self) -> bool:
        """Whether the loss compares with a teacher."""
        return self.loss in (Loss.FORWARD_KL, Loss.REVERSE_KL, Loss.JSD)
