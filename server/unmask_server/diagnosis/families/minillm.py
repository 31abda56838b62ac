"""The reverse KL of whole continuations, by policy gradient.

Source: MiniLLM, Gu et al. 2023, arXiv 2306.08543. L = E_{y ~ P} sum_t log(P(y_t) / T(y_t)) has at a
node dL/dz_j = P_j (f_j - sum_k P_k f_k) with A_j = -f_j = r_j + R_j, r_j = log(T_j / P_j) the
token's own log-ratio and R_j = E[sum of r over the tokens after j]. `LossInputs.later` is:

| `single_step` | `length_normalized` | A_j | later_j |
|---|---|---|---|
| yes | no | r_j + later_j | E[sum of later r] |
| yes | yes | r_j + later_j | E[mean of later r], 0 where none follows |
| no | no | r_j + later_j | E[sum of later r] |
| no | yes | later_j | E[(r_j + sum of later r) / (1 + their number)] |

The paper's variant is `single_step` with `length_normalized`. Its single-step part is the exact
gradient of KL(P|T) at the node in the SAMPLED form, too: there one token's step is that gradient
plus R (e_y - P). Without it, the step is (r_y + R) (e_y - P).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unmask_server.diagnosis.algorithms import Algorithm
from unmask_server.diagnosis.families.base import (
    BoolArray,
    FloatArray,
    LossInputs,
    log_ratio,
    take,
    teacher,
    times_log_ratio,
)


def own_clip(algorithm: Algorithm) -> float:
    """The cut of the token's own log-ratio: none where its expectation is exact."""
    return 0.0 if algorithm.single_step else algorithm.ratio_clip


def has_own(algorithm: Algorithm) -> bool:
    """Whether the token's own log-ratio stands beside `later`, not in it."""
    return algorithm.single_step or not algorithm.length_normalized


class MiniLLM:
    """Reverse KL of continuations."""

    def weighted(self, algorithm: Algorithm, inputs: LossInputs) -> FloatArray:
        """See `Family`; without `later`, of the token's own log-ratio alone."""
        p, t = inputs.p, teacher(inputs)
        own: FloatArray = np.zeros(np.broadcast_shapes(p.shape, t.shape))
        if has_own(algorithm):
            own = times_log_ratio(p, t, own_clip(algorithm))
        return own if inputs.later is None else own + p * inputs.later

    def sampled(self, algorithm: Algorithm, inputs: LossInputs, y: NDArray[np.intp]) -> FloatArray:
        """The sampled part of A_y; with `single_step` that is `later` alone."""
        if inputs.later is None:
            raise ValueError("MiniLLM's sampled step needs the log-ratios of the later tokens")
        later = np.broadcast_to(inputs.later, y.shape)
        if algorithm.single_step or not has_own(algorithm):
            return later
        return later + log_ratio(take(inputs.p, y), take(teacher(inputs), y), own_clip(algorithm))

    def unbounded(self, algorithm: Algorithm, inputs: LossInputs) -> BoolArray:
        """Where T_j = 0 < P_j, unless the log-ratio is cut."""
        p, t = np.broadcast_arrays(inputs.p, teacher(inputs))
        if not has_own(algorithm) or own_clip(algorithm) > 0.0:
            return np.zeros(p.shape, dtype=bool)
        infinite: BoolArray = (t <= 0.0) & (p > 0.0)
        return infinite

    def sensitivity(self, algorithm: Algorithm, inputs: LossInputs) -> FloatArray:
        """That of the token's own log-ratio."""
        return inputs.p if has_own(algorithm) else np.zeros_like(inputs.p)
