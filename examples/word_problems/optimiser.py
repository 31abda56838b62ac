"""Muon for the matrices, AdamW for the rest.

Muon (Keller Jordan, 2024, https://kellerjordan.github.io/posts/muon/) replaces a matrix's momentum
by the nearest orthogonal matrix, found by a Newton-Schulz iteration. PyTorch's own runs it in
bfloat16, which is slow on CPUs; this one stays in float32 and takes matrices of a shape together.
"""

from __future__ import annotations

from collections import defaultdict

import torch

# Coefficients of the quintic iteration; it takes singular values in (0, 1] to about 0.7..1.2.
_A, _B, _C = 3.4445, -4.7750, 2.0315


def orthogonalise(matrices: torch.Tensor, iterations: int = 5) -> torch.Tensor:
    """Nearly orthogonal matrices with the singular vectors of ``matrices`` (batch, rows, cols)."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = _A * x + (_B * gram + _C * gram @ gram) @ x
    return x.mT if tall else x


class Optimiser:
    """Muon on the layers' matrices; AdamW on embeddings, biases and norms."""

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        matrix_rate: float = 0.02,
        other_rate: float = 5e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
    ) -> None:
        self._groups: dict[tuple[int, ...], list[torch.nn.Parameter]] = defaultdict(list)
        others = []
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "embed" not in name and "lm_head" not in name:
                self._groups[tuple(parameter.shape)].append(parameter)
            else:
                others.append(parameter)
        self._momenta = {
            shape: torch.zeros(len(group), *shape) for shape, group in self._groups.items()
        }
        self._adam = torch.optim.AdamW(others, lr=other_rate, betas=(0.9, 0.98), weight_decay=0.0)
        self._matrix_rate, self._other_rate = matrix_rate, other_rate
        self._momentum, self._weight_decay = momentum, weight_decay

    def step(self, factor: float) -> None:
        """Take a step with both learning rates times ``factor``, and clear the gradients."""
        for group in self._adam.param_groups:
            group["lr"] = self._other_rate * factor
        self._adam.step()
        self._adam.zero_grad()
        rate = self._matrix_rate * factor
        with torch.no_grad():
            for (rows, columns), group in self._groups.items():
                gradient = torch.stack([parameter.grad for parameter in group])
                momentum = self._momenta[rows, columns]
                momentum.lerp_(gradient, 1 - self._momentum)
                nesterov = gradient.lerp(momentum, self._momentum)
                update = orthogonalise(nesterov) * max(1.0, rows / columns) ** 0.5
                for parameter, change in zip(group, update, strict=True):
                    parameter.mul_(1 - rate * self._weight_decay).sub_(change, alpha=rate)
                    parameter.grad = None
