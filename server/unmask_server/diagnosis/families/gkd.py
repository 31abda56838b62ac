"""Divergences between student and teacher at a node.

Source: generalised knowledge distillation, Agarwal et al. 2023, arXiv 2306.13649, with TRL's
convention for beta: M = beta T + (1 - beta) P, beta = 0 is KL(T|P), beta = 1 is KL(P|T).

| loss | A_j = -f_j |
|---|---|
| KL(T|P) | T_j / P_j |
| KL(P|T) | log(T_j / P_j) |
| beta KL(T|M) + (1 - beta) KL(P|M) | (1 - beta) log(M_j / P_j) |
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unmask_server.diagnosis.algorithms import Algorithm, Loss
from unmask_server.diagnosis.families.base import BoolArray, FloatArray, LossInputs, take


class GKD:
    """Forward KL, reverse KL and the Jensen-Shannon divergences between them."""

    def weighted(self, algorithm: Algorithm, inputs: LossInputs) -> FloatArray:
        """See `Family`."""
        p, t = inputs.p, _teacher(inputs)
        loss = _limit(algorithm)
        if loss is Loss.FORWARD_KL:
            return t
        if loss is Loss.REVERSE_KL:
            return _times_log_ratio(p, t)
        beta = algorithm.beta
        return (1.0 - beta) * _times_log_ratio(p, beta * t + (1.0 - beta) * p)

    def sampled(self, algorithm: Algorithm, inputs: LossInputs, y: NDArray[np.intp]) -> FloatArray:
        """See `Family`."""
        p_y, t_y = take(inputs.p, y), take(_teacher(inputs), y)
        loss = _limit(algorithm)
        with np.errstate(divide="ignore", invalid="ignore"):
            if loss is Loss.FORWARD_KL:
                return t_y / p_y
            if loss is Loss.REVERSE_KL:
                return np.log(t_y) - np.log(p_y)
            beta = algorithm.beta
            mixture = beta * t_y + (1.0 - beta) * p_y
            return (1.0 - beta) * (np.log(mixture) - np.log(p_y))

    def unbounded(self, algorithm: Algorithm, inputs: LossInputs) -> BoolArray:
        """Reverse KL where T_j = 0 < P_j: the loss itself is infinite there."""
        p, t = np.broadcast_arrays(inputs.p, _teacher(inputs))
        if _limit(algorithm) is Loss.REVERSE_KL:
            return (t <= 0.0) & (p > 0.0)
        return np.zeros(p.shape, dtype=bool)

    def sensitivity(self, algorithm: Algorithm, inputs: LossInputs) -> FloatArray:
        """See `Family`."""
        p, t = inputs.p, _teacher(inputs)
        loss = _limit(algorithm)
        if loss is Loss.FORWARD_KL:
            return t
        if loss is Loss.REVERSE_KL:
            return p
        beta = algorithm.beta
        mixture = beta * t + (1.0 - beta) * p
        both = p * t
        return (
            (1.0 - beta)
            * beta
            * np.divide(both, mixture, out=np.zeros_like(both), where=mixture > 0)
        )


def _limit(algorithm: Algorithm) -> Loss:
    """The loss to compute: JSD's ends are the KLs that its direction tends to."""
    if algorithm.loss is Loss.JSD:
        if algorithm.beta == 0.0:
            return Loss.FORWARD_KL
        if algorithm.beta == 1.0:
            return Loss.REVERSE_KL
    return algorithm.loss


def _teacher(inputs: LossInputs) -> FloatArray:
    if inputs.t is None:
        raise ValueError("this loss compares with a teacher: t is missing")
    return inputs.t


def _times_log_ratio(p: FloatArray, q: FloatArray) -> FloatArray:
    """p log(q / p), 0 where p = 0, minus infinity where only q = 0."""
    p, q = np.broadcast_arrays(p, q)
    result = np.zeros(p.shape)
    live = p > 0.0
    with np.errstate(divide="ignore"):
        result[live] = p[live] * (np.log(q[live]) - np.log(p[live]))
    return result
