"""Losses that people train with, as their own code computes them, and what they are here.

Each oracle calls the trainer's function on logits and says which of our algorithms it should equal
and by what their masking and reduction multiply a token's gradient.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import torch
from unmask_server.diagnosis import Algorithm, Form, Loss, Rest, TopKOf, descent

from tests.oracles.data import Batch, softmax

TEMPERATURE = 0.8
K = 8
Run = Callable[[torch.Tensor, torch.Tensor, Batch], torch.Tensor]


@dataclass(frozen=True)
class Oracle:
    """A loss of somebody else's."""

    name: str
    where: str
    """Package and function."""
    algorithm: Algorithm
    run: Run
    """Student's and teacher's logits to the loss, a scalar."""
    weight: Callable[[Batch], torch.Tensor]
    """What a token's gradient is multiplied by, shape (2, tokens); 0 where it is masked."""
    reduction: str
    """The same in words."""
    float32_only: bool = False
    """Whether their code goes through float32 whatever it is given."""
    limit: float = 1e-6
    """Of the largest difference in float32."""
    offset: float = 0.0
    """A constant in the sampled token's advantage, a baseline, that ours does not have."""
    note: str = field(default="")


def per_token(batch: Batch) -> torch.Tensor:
    return batch.mask.double() / batch.mask.sum()


def per_sequence(batch: Batch) -> torch.Tensor:
    return batch.mask.double() / batch.mask.sum(1, keepdim=True) / len(batch.mask)


def plain(batch: Batch) -> torch.Tensor:
    return batch.mask


def labels(batch: Batch) -> torch.Tensor:
    return torch.where(batch.mask > 0, batch.tokens, -100)


def logps(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    from trl.trainer.utils import selective_log_softmax

    return selective_log_softmax(logits, tokens)


def _gkd(beta: float) -> Run:
    def run(z: torch.Tensor, t: torch.Tensor, batch: Batch) -> torch.Tensor:
        from trl.experimental.gkd.gkd_trainer import GKDTrainer

        return GKDTrainer.generalized_jsd_loss(
            z, t, labels=labels(batch), beta=beta, temperature=TEMPERATURE
        )

    return run


def _distillation(beta: float) -> Run:
    def run(z: torch.Tensor, t: torch.Tensor, batch: Batch) -> torch.Tensor:
        from trl.trainer.distillation_trainer import _chunked_divergence_loss

        # Logits are hidden states under an identity head.
        eye = torch.eye(z.shape[-1], dtype=z.dtype)
        loss, _, _ = _chunked_divergence_loss(
            z, t, eye, eye, batch.mask, beta, temperature=TEMPERATURE
        )
        return loss

    return run


def _masked(per_token_loss: torch.Tensor, batch: Batch) -> torch.Tensor:
    return (per_token_loss * batch.mask).sum()


def _self_full(package: str, alpha: float) -> Run:
    def run(z: torch.Tensor, t: torch.Tensor, batch: Batch) -> torch.Tensor:
        loss = _utils(package).compute_full_logit_self_distillation_loss
        return _masked(loss(z, t, distillation_alpha=alpha), batch)

    return run


def _self_top_k(package: str, alpha: float, tail: bool) -> Run:
    def run(z: torch.Tensor, t: torch.Tensor, batch: Batch) -> torch.Tensor:
        loss = _utils(package).compute_topk_self_distillation_loss
        found = loss(
            z, t, distillation_topk=K, distillation_alpha=alpha, distillation_add_tail=tail
        )
        return _masked(found, batch)

    return run


def _self_sampled(package: str) -> Run:
    def run(z: torch.Tensor, t: torch.Tensor, batch: Batch) -> torch.Tensor:
        loss = _utils(package).compute_sampled_token_self_distillation_loss
        return _masked(loss(z, t, batch.tokens, distillation_alpha=1.0), batch)

    return run


def _utils(package: str) -> Any:
    import importlib

    return importlib.import_module(f"trl.experimental.{package}.loss_utils")


def _server_forward(tail: bool) -> Run:
    def run(z: torch.Tensor, t: torch.Tensor, batch: Batch) -> torch.Tensor:
        from trl.experimental.server_distillation import server_distillation_trainer as module

        trainer = module.ServerDistillationTrainer
        me = SimpleNamespace(
            loss_add_tail=tail, _reduce_divergence_loss=trainer._reduce_divergence_loss
        )
        top = torch.log_softmax(t, -1).topk(K, -1)
        return trainer._compute_server_forward_kl_loss(
            me,
            {"topk_logprobs": top.values, "topk_token_ids": top.indices},
            torch.log_softmax(z, -1),
            labels(batch),
        )

    return run


def _grpo(kind: str) -> Run:
    def run(z: torch.Tensor, t: torch.Tensor, batch: Batch) -> torch.Tensor:
        from trl.trainer.grpo_trainer import GRPOTrainer

        own = logps(z, batch.tokens)
        me = SimpleNamespace(
            _get_per_token_logps_and_entropies=lambda *a, **k: (own, torch.zeros_like(own), None),
            aux_loss_enabled=False, top_entropy_quantile=1.0, off_policy_mask_threshold=None,
            importance_sampling_level="token", beta=0.0, loss_type=kind, epsilon_low=0.2,
            epsilon_high=0.2, args=SimpleNamespace(delta=None), use_vllm=False,
            model=SimpleNamespace(training=True), current_gradient_accumulation_steps=1,
            max_completion_length=HORIZON, _entropy_bonus_enabled=False,
            _metrics=defaultdict(lambda: defaultdict(list)),
            accelerator=SimpleNamespace(
                gather=lambda x: x, reduce=lambda x, reduction: x, num_processes=1
            ),
        )  # fmt: skip
        inputs = {
            "prompt_ids": batch.tokens, "prompt_mask": batch.mask,
            "completion_ids": batch.tokens, "completion_mask": batch.mask,
            "advantages": batch.advantages.to(z.dtype),
        }  # fmt: skip
        return GRPOTrainer._compute_loss(me, None, inputs)

    return run


HORIZON = 64


def constant_length(batch: Batch) -> torch.Tensor:
    return batch.mask.double() / (len(batch.mask) * HORIZON)


def _verl_kl(kind: str) -> Run:
    def run(z: torch.Tensor, t: torch.Tensor, batch: Batch) -> torch.Tensor:
        from verl.trainer.ppo.core_algos import agg_loss, kl_penalty

        losses = kl_penalty(logps(z, batch.tokens), logps(t, batch.tokens), kind)
        return agg_loss(losses, batch.mask, "token-mean")

    return run


def _verl_policy_gradient() -> Run:
    def run(z: torch.Tensor, t: torch.Tensor, batch: Batch) -> torch.Tensor:
        from verl.trainer.ppo.core_algos import compute_policy_loss_vanilla, kl_penalty

        own = logps(z, batch.tokens)
        config = _Config(clip_ratio=0.2, clip_ratio_low=0.2, clip_ratio_high=0.2)
        k1 = kl_penalty(own, logps(t, batch.tokens), "k1")
        loss, _ = compute_policy_loss_vanilla(
            own.detach(), own, -k1.detach(), batch.mask, "token-mean", config=config
        )
        return loss

    return run


def below_k3_clamp(batch: Batch) -> torch.Tensor:
    """verl clamps a token's k3 at 10, and a clamped one has no gradient."""
    gap = logps(batch.teacher, batch.tokens) - logps(batch.student, batch.tokens)
    return per_token(batch) * (gap.exp() - gap - 1 < 10)


class _Config(SimpleNamespace):
    """What verl's policy loss reads of its configuration."""

    global_batch_info: ClassVar[dict[str, Any]] = {}

    def get(self, key: str, default: Any) -> Any:
        return getattr(self, key, default)


def _verl_top_k() -> Run:
    def run(z: torch.Tensor, t: torch.Tensor, batch: Batch) -> torch.Tensor:
        from verl.trainer.distillation.fsdp.losses import compute_forward_kl_topk
        from verl.trainer.ppo.core_algos import agg_loss

        top = torch.log_softmax(t, -1).topk(K, -1)
        rows = list(top.values), list(top.indices)
        settings = SimpleNamespace(use_chunked_topk=False, log_prob_min_clamp=None, topk=K)
        found = compute_forward_kl_topk(
            z.reshape(1, -1, z.shape[-1]),
            torch.nested.as_nested_tensor(rows[0], layout=torch.jagged),
            torch.nested.as_nested_tensor(rows[1], layout=torch.jagged),
            SimpleNamespace(distillation_loss=settings),
            "thd",
        )
        losses = found["distillation_losses"].reshape(batch.mask.shape)
        return agg_loss(losses, batch.mask, "token-mean")

    return run


def _ours(loss: Loss, **settings: Any) -> Algorithm:
    return Algorithm(loss, **settings)


_KLS = {0.0: Loss.FORWARD_KL, 1.0: Loss.REVERSE_KL}
_SAMPLED = _ours(Loss.REVERSE_KL, form=Form.SAMPLED)


def _divergence(beta: float, **settings: Any) -> Algorithm:
    if beta in _KLS:
        return _ours(_KLS[beta], **settings)
    return _ours(Loss.JSD, beta=beta, **settings)


def oracles() -> list[Oracle]:
    """All of them."""
    found = []
    for beta in (0.0, 0.1, 0.5, 0.9, 1.0):
        same = _divergence(beta, temperature=TEMPERATURE)
        found.append(
            Oracle(f"GKD, beta {beta:g}", "trl GKDTrainer.generalized_jsd_loss", same,
                   _gkd(beta), per_token, "mean over unmasked tokens")
        )  # fmt: skip
        found.append(
            Oracle(
                f"distillation, beta {beta:g}",
                "trl distillation_trainer._chunked_divergence_loss",
                same, _distillation(beta), per_token, "mean over unmasked tokens",
                float32_only=True, limit=5e-6,
            )
        )  # fmt: skip
    for package in ("sdft", "sdpo"):
        where = f"trl {package}.loss_utils"
        for alpha in (0.0, 0.5, 1.0):
            found.append(
                Oracle(f"{package.upper()} full, alpha {alpha:g}",
                       f"{where}.compute_full_logit_self_distillation_loss", _divergence(alpha),
                       _self_full(package, alpha), plain, "a sum, masked here")
            )  # fmt: skip
            for tail in (True, False):
                settings = {
                    "top_k": K, "top_k_of": TopKOf.STUDENT,
                    "rest": Rest.TAIL if tail else Rest.RENORMALIZED,
                }  # fmt: skip
                found.append(
                    Oracle(f"{package.upper()} top {K} {'tail' if tail else 'renormalized'}, "
                           f"alpha {alpha:g}", f"{where}.compute_topk_self_distillation_loss",
                           _divergence(alpha, **settings), _self_top_k(package, alpha, tail), plain,
                           "a sum, masked here", limit=5e-5 if tail else 1e-6)
                )  # fmt: skip
        found.append(
            Oracle(f"{package.upper()} sampled token",
                   f"{where}.compute_sampled_token_self_distillation_loss", _SAMPLED,
                   _self_sampled(package), plain, "a sum, masked here")
        )  # fmt: skip
    for tail in (True, False):
        found.append(
            Oracle(f"teacher server top {K} {'tail' if tail else 'renormalized'}",
                   "trl ServerDistillationTrainer._compute_server_forward_kl_loss",
                   _ours(Loss.FORWARD_KL, top_k=K, top_k_of=TopKOf.TEACHER,
                         rest=Rest.TAIL if tail else Rest.RENORMALIZED),
                   _server_forward(tail), per_token, "mean over unmasked tokens",
                   limit=1e-5 if tail else 1e-6)
        )  # fmt: skip
    for kind, loss, weight, words in (
        ("grpo", Loss.GRPO, per_sequence, "mean over a sequence's tokens, then over sequences"),
        ("bnpo", Loss.GRPO, per_token, "mean over unmasked tokens"),
        ("dr_grpo", Loss.DR_GRPO, constant_length, f"sum over (sequences x {HORIZON}), a constant"),
    ):
        found.append(
            Oracle(f"GRPO, loss type {kind}", "trl GRPOTrainer._compute_loss",
                   _ours(loss, form=Form.SAMPLED), _grpo(kind), weight, words)
        )  # fmt: skip
    found.append(
        Oracle("k2 as a loss", "verl core_algos.kl_penalty", _SAMPLED, _verl_kl("k2"), per_token,
               "agg_loss token-mean")
    )  # fmt: skip
    found.append(
        Oracle("k3+ as a loss", "verl core_algos.kl_penalty", _SAMPLED, _verl_kl("k3+"), per_token,
               "agg_loss token-mean")
    )  # fmt: skip
    found.append(
        Oracle("k3 as a loss", "verl core_algos.kl_penalty",
               _ours(Loss.FORWARD_KL, form=Form.SAMPLED), _verl_kl("k3"), below_k3_clamp,
               "agg_loss token-mean, and its clamp", offset=-1.0, limit=2e-6,
               note="its step is forward KL's, less a baseline of 1")
    )  # fmt: skip
    found.append(
        Oracle("k1 as a reward", "verl core_algos.compute_policy_loss_vanilla", _SAMPLED,
               _verl_policy_gradient(), per_token, "agg_loss token-mean, ratio 1")
    )  # fmt: skip
    found.append(
        Oracle(f"forward_kl_topk, {K}", "verl distillation.fsdp.losses.compute_forward_kl_topk",
               _ours(Loss.FORWARD_KL, top_k=K, top_k_of=TopKOf.TEACHER, rest=Rest.DROPPED),
               _verl_top_k(), per_token, "agg_loss token-mean", float32_only=True)
    )  # fmt: skip
    return found


def theirs(oracle: Oracle, batch: Batch, dtype: torch.dtype) -> np.ndarray:
    """Descent direction by their code and autograd, shape (2, tokens, vocabulary)."""
    z = batch.student.to(dtype).clone().requires_grad_()
    oracle.run(z, batch.teacher.to(dtype), batch).backward()
    assert z.grad is not None
    return -z.grad.double().numpy()


def ours(oracle: Oracle, batch: Batch) -> np.ndarray:
    """The same by our formula, their masking and reduction done to it."""
    algorithm = oracle.algorithm
    p = softmax(batch.student, algorithm.temperature)
    t = softmax(batch.teacher, algorithm.temperature)
    observed = batch.tokens.numpy()
    advantage = batch.advantages.numpy()[:, None].repeat(observed.shape[1], 1)
    if algorithm.needs_teacher:
        d = descent(algorithm, p, t, observed=observed)
    else:
        d = descent(algorithm, p, observed=observed, advantage=advantage)
    if oracle.offset:
        towards = np.eye(p.shape[-1])[observed] - p
        d = d + oracle.offset * towards
    return d[..., :-1] * oracle.weight(batch).numpy()[..., None]


def largest_difference(oracle: Oracle, batch: Batch, dtype: torch.dtype) -> float:
    """Over all tokens and logits, before their reduction made it small.

    Relative to the largest component where that is above 1: log-ratios reach tens of nats.
    """
    scale = float(oracle.weight(batch).max())
    mine = ours(oracle, batch)
    off = np.abs(theirs(oracle, batch, dtype) - mine).max() / scale
    return float(off / max(1.0, np.abs(mine).max() / scale))
