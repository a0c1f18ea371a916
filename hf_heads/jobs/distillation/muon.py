"""Muon: momentum whose singular values are made equal, for matrices; AdamW for everything else.

Jordan et al. 2024, https://kellerjordan.github.io/posts/muon, with steps of AdamW's size (Liu et al. 2025,
arXiv 2502.16982). Projections of attention heads are ill-conditioned where they come out of a decomposition; equal
singular values are what AdamW, which scales each entry by itself, does not give.

AdamW is torch's. `torch.optim.Muon`, which torch has since 2.9, takes the same steps but orthogonalizes in bfloat16:
they differ from those in float32 by one or two in a hundred, and gradients that differ by one in a million, as those
of one process and of two do, give steps that differ by up to one in a hundred, here by a few in a million. And the
same run would give other weights with torch 2.8, so that matrices are stepped here whatever torch has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

_QUINTIC = (3.4445, -4.775, 2.0315)  # pushes singular values of (0, 1] into about 0.7 to 1.2 in five rounds
_ROUNDS = 5
_BETAS = (0.9, 0.98)
_EPSILON = 1e-6  # gradients that are zero but for rounding, as those of key biases, must move nothing


def orthogonalized(matrix: Tensor) -> Tensor:
    """U V^T, roughly, of a matrix U S V^T, by a Newton-Schulz iteration; the smaller side must not be empty."""
    wide = matrix if matrix.shape[-2] <= matrix.shape[-1] else matrix.mT
    wide = wide / wide.norm().clamp_min(1e-12)
    first, second, third = _QUINTIC
    for _ in range(_ROUNDS):
        gram = wide @ wide.mT
        wide = first * wide + (second * gram + third * gram @ gram) @ wide
    return wide if matrix.shape[-2] <= matrix.shape[-1] else wide.mT


class Muon(torch.optim.AdamW):
    """Muon for parameters with two dimensions, each above one, and AdamW for the others, without weight decay.

    A step takes the gradients of matrices away, so that AdamW passes them over.

    Args:
        parameters: what to train, or groups of it.
        lr: learning rate of both; an update of either has a root mean square of about a fifth of it, or of it.
        momentum: of matrices; Nesterov's.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]], lr: float, momentum: float = 0.95
    ) -> None:
        super().__init__(parameters, lr=lr, betas=_BETAS, eps=_EPSILON, weight_decay=0.0)
        for group in self.param_groups:
            group["momentum"] = momentum

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.ndim == 2 and min(parameter.shape) > 1:
                    self._matrix(parameter, parameter.grad, group)
                    parameter.grad = None
        super().step()
        return loss

    def _matrix(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            # AdamW wants every state that it loads to count steps.
            state.update(step=torch.zeros(()), momentum=torch.zeros_like(parameter))
        momentum = state["momentum"].lerp_(gradient, 1 - group["momentum"])
        update = orthogonalized(gradient.lerp(momentum, group["momentum"]).float())
        parameter.add_(update.to(parameter.dtype), alpha=-0.2 * math.sqrt(max(parameter.shape)) * group["lr"])
