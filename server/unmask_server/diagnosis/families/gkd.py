"""Divergences between student and teacher at a node.

Source: generalised knowledge distillation, Agarwal et al. 2023, arXiv 2306.13649, with TRL's
convention for beta: M = beta T + (1 - beta) P, beta = 0 is KL(T|P), beta = 1 is KL(P|T).

| loss | its term at a token | A_j = -f_j |
|---|---|---|
| KL(T|P) | T log(T / P) | T_j / P_j |
| KL(P|T) | P log(P / T) | log(T_j / P_j) |
| JSD | beta T log(T / M) + (1 - beta) P log(P / M) | (1 - beta) log(M_j / P_j) |

A_j is minus the term's derivative by P_j, up to a constant that the gradient does not see. Where
only some of the terms count (outside of a top k that is not renormalised, or cut at `token_clip`)
the constant matters: it is -1 for KL(P|T), 0 for the others.

Top k with a tail bucket, as in SDPO and in trainers whose teacher sends its likeliest tokens: all
tokens outside have the bucket's ratio T/P, which is the gradient of the loss over the bucket (its
derivative by each of their logits goes through P of the bucket alone). `token_clip` is the
pointwise clipping of on-policy self-distillation, Zhao et al. 2026, arXiv 2601.18734.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from unmask_server.diagnosis.algorithms import Algorithm, Loss, Rest, TopKOf
from unmask_server.diagnosis.families.base import (
    BoolArray,
    FloatArray,
    LossInputs,
    log_ratio,
    take,
    teacher,
    times_log_ratio,
)


class GKD:
    """Forward KL, reverse KL and the Jensen-Shannon divergences between them."""

    def weighted(self, algorithm: Algorithm, inputs: LossInputs) -> FloatArray:
        """See `Family`."""
        p, t = inputs.p, teacher(inputs)
        counted = _counted(algorithm, inputs)
        loss = _limit(algorithm)
        if loss is Loss.FORWARD_KL:
            weighted = t
        elif loss is Loss.REVERSE_KL:
            weighted = times_log_ratio(p, t, algorithm.ratio_clip)
            if counted is not None:
                weighted = weighted - p
        else:
            beta = algorithm.beta
            weighted = (1.0 - beta) * times_log_ratio(p, beta * t + (1.0 - beta) * p)
        return weighted if counted is None else np.where(counted, weighted, 0.0)

    def sampled(self, algorithm: Algorithm, inputs: LossInputs, y: NDArray[np.intp]) -> FloatArray:
        """See `Family`."""
        p_y, t_y = take(inputs.p, y), take(teacher(inputs), y)
        loss = _limit(algorithm)
        with np.errstate(divide="ignore", invalid="ignore"):
            if loss is Loss.FORWARD_KL:
                return t_y / p_y
            if loss is Loss.REVERSE_KL:
                return log_ratio(p_y, t_y, algorithm.ratio_clip)
            beta = algorithm.beta
            mixture = beta * t_y + (1.0 - beta) * p_y
            return (1.0 - beta) * (np.log(mixture) - np.log(p_y))

    def unbounded(self, algorithm: Algorithm, inputs: LossInputs) -> BoolArray:
        """Reverse KL where T_j = 0 < P_j: the loss itself is infinite there, unless it is cut.

        Everywhere, if one of the two has nothing on the tokens that a loss is renormalised over.
        """
        p, t = np.broadcast_arrays(inputs.p, teacher(inputs))
        if algorithm.top_k and algorithm.rest is Rest.RENORMALIZED:
            empty = (p.sum(axis=-1) <= 0.0) | (t.sum(axis=-1) <= 0.0)
            if empty.any():
                return np.broadcast_to(empty[..., np.newaxis], p.shape)
        cut = algorithm.ratio_clip > 0.0
        if _limit(algorithm) is not Loss.REVERSE_KL or cut:
            return np.zeros(p.shape, dtype=bool)
        infinite: BoolArray = (t <= 0.0) & (p > 0.0)
        counted = _counted(algorithm, inputs)
        return infinite if counted is None else infinite & counted

    def sensitivity(self, algorithm: Algorithm, inputs: LossInputs) -> FloatArray:
        """See `Family`."""
        p, t = inputs.p, teacher(inputs)
        loss = _limit(algorithm)
        if loss is Loss.FORWARD_KL:
            moved = t
        elif loss is Loss.REVERSE_KL:
            moved = p
            if algorithm.ratio_clip > 0.0:
                moved = np.where(np.abs(log_ratio(p, t, 0.0)) < algorithm.ratio_clip, moved, 0.0)
        else:
            beta = algorithm.beta
            mixture = beta * t + (1.0 - beta) * p
            both = (1.0 - beta) * beta * p * t
            moved = np.divide(both, mixture, out=np.zeros_like(both), where=mixture > 0)
        counted = _counted(algorithm, inputs)
        return moved if counted is None else np.where(counted, moved, 0.0)


def restricted(algorithm: Algorithm, inputs: LossInputs) -> LossInputs:
    """The inputs as a loss of the k likeliest tokens has them.

    TAIL spreads the teacher's probability of the others in proportion to the student's;
    RENORMALIZED leaves them none; DROPPED changes nothing: see `_counted`.
    """
    if algorithm.top_k == 0 or algorithm.rest is Rest.DROPPED:
        return inputs
    p, t = np.broadcast_arrays(inputs.p, teacher(inputs))
    chosen = _top_k(algorithm, p, t)
    if algorithm.rest is Rest.RENORMALIZED:
        return replace(inputs, p=_normalised(p, chosen), t=_normalised(t, chosen))
    p_rest = np.where(chosen, 0.0, p).sum(axis=-1, keepdims=True)
    t_rest = np.where(chosen, 0.0, t).sum(axis=-1, keepdims=True)
    ratio = np.divide(t_rest, p_rest, out=np.zeros_like(t_rest), where=p_rest > 0.0)
    return replace(inputs, t=np.where(chosen, t, p * ratio), bucket=~chosen)


def _counted(algorithm: Algorithm, inputs: LossInputs) -> BoolArray | None:
    """Which tokens' terms have a gradient; None if all have."""
    p, t = inputs.p, teacher(inputs)
    counted: BoolArray | None = None
    if algorithm.top_k and algorithm.rest is Rest.DROPPED:
        counted = _top_k(algorithm, *np.broadcast_arrays(p, t))
    if algorithm.token_clip > 0.0:
        terms = _terms(algorithm, p, t)
        if inputs.bucket is not None:
            # Tokens of one ratio: the bucket's term is the sum of what would be theirs.
            together = np.where(inputs.bucket, terms, 0.0).sum(axis=-1, keepdims=True)
            terms = np.where(inputs.bucket, together, terms)
        below: BoolArray = terms < algorithm.token_clip
        counted = below if counted is None else counted & below
    return counted


def _terms(algorithm: Algorithm, p: FloatArray, t: FloatArray) -> FloatArray:
    """Each token's part of the loss, in nats."""
    loss = _limit(algorithm)
    if loss is Loss.FORWARD_KL:
        return -times_log_ratio(t, p)
    if loss is Loss.REVERSE_KL:
        return -times_log_ratio(p, t)
    beta = algorithm.beta
    mixture = beta * t + (1.0 - beta) * p
    return -beta * times_log_ratio(t, mixture) - (1.0 - beta) * times_log_ratio(p, mixture)


def _top_k(algorithm: Algorithm, p: FloatArray, t: FloatArray) -> BoolArray:
    """The k likeliest candidates; the tail bucket, which is last, is never one."""
    by = t if algorithm.top_k_of is TopKOf.TEACHER else p
    order = np.argsort(-by[..., :-1], axis=-1, kind="stable")[..., : algorithm.top_k]
    chosen = np.zeros(by.shape, dtype=bool)
    np.put_along_axis(chosen, order, True, axis=-1)
    return chosen


def _normalised(p: FloatArray, chosen: BoolArray) -> FloatArray:
    """Zero where nothing of it is left."""
    kept = np.where(chosen, p, 0.0)
    total = kept.sum(axis=-1, keepdims=True)
    result: FloatArray = np.divide(kept, total, out=np.zeros_like(kept), where=total > 0.0)
    return result


def _limit(algorithm: Algorithm) -> Loss:
    """The loss to compute: JSD's ends are the KLs that its direction tends to."""
    if algorithm.loss is Loss.JSD:
        if algorithm.beta == 0.0:
            return Loss.FORWARD_KL
        if algorithm.beta == 1.0:
            return Loss.REVERSE_KL
    return algorithm.loss
