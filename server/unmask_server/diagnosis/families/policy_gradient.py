"""Policy gradients from the outcome alone, without a teacher.

Sources: GRPO, Shao et al. 2024, arXiv 2402.03300 (advantage (r - mean r) / std r); Dr. GRPO, Liu
et al. 2025, arXiv 2503.20783 (advantage r - mean r, no length normalisation). The reward of a
rollout through token j is s_j in expectation, whence A_j = s_j up to a constant, which the
gradient does not see: Dr. GRPO's expected step is the ideal gradient, GRPO's is that over std r.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unmask_server.diagnosis.algorithms import Algorithm, Loss
from unmask_server.diagnosis.families.base import BoolArray, FloatArray, LossInputs


class PolicyGradient:
    """GRPO and Dr. GRPO."""

    def weighted(self, algorithm: Algorithm, inputs: LossInputs) -> FloatArray:
        """See `Family`. GRPO without `reward_std` is left unscaled: its direction is the same."""
        if inputs.s is None:
            raise ValueError("the expected policy gradient needs the chances of success s")
        weighted = inputs.p * inputs.s
        if algorithm.loss is Loss.GRPO and inputs.reward_std is not None:
            return weighted / inputs.reward_std
        return weighted

    def sampled(self, algorithm: Algorithm, inputs: LossInputs, y: NDArray[np.intp]) -> FloatArray:
        """The advantage as it was given: the caller has centred (and, for GRPO, scaled) it."""
        if inputs.advantage is None:
            raise ValueError("the sampled policy gradient needs the trajectory's advantage")
        return np.broadcast_to(inputs.advantage, y.shape)

    def unbounded(self, algorithm: Algorithm, inputs: LossInputs) -> BoolArray:
        """Never."""
        return np.zeros(inputs.p.shape, dtype=bool)

    def sensitivity(self, algorithm: Algorithm, inputs: LossInputs) -> FloatArray:
        """None: rewards carry no scoring noise."""
        return np.zeros(inputs.p.shape)
