"""Errors of scores weighed by the attention that they change: KL(p_i || q_i), its samples and its descent.

To second order the divergence is 1/2 [sum_j p_ij d_ij^2 - (sum_j p_ij d_ij)^2], d the error of the scores: pairs of
positions count by the attention between them, and what is constant along a row does not count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

HIDDEN = -1e9  # far below any score, and finite: a row of padding sees nothing at all


@dataclass(frozen=True)
class AttentionSample:
    """Queries of some sequences of equal length, all keys that they see, and the attention to be kept.

    Attributes:
        queries: (batch, target, query_width), inputs of the sampled queries.
        memory: (batch, source, key_width), inputs of all keys.
        mask: (batch, 1 or heads, target, source), added to the scores; `HIDDEN` where a query must not look.
        attention: p, (batch, heads, target, source); zero where hidden.
        counts: (batch, 1, target), how much a query counts; 0 for padding.
    """

    queries: Tensor
    memory: Tensor
    mask: Tensor
    attention: Tensor
    counts: Tensor

    def divergence(self, scores: Tensor) -> Tensor:
        """KL(p || softmax(scores)) in nats summed over the queries, (heads,)."""
        rows: Tensor = _CrossEntropy.apply(scores, self.attention, self.mask)
        return ((rows - self.entropy) * self.counts).sum((0, 2))

    @cached_property
    def entropy(self) -> Tensor:
        """Of p, (batch, heads, target)."""
        return torch.special.entr(self.attention).sum(-1)

    def drawn(self, scores: Tensor, generator: torch.Generator) -> Tensor:
        """Minus the log likelihood of one key for each query, drawn from softmax(scores), over all queries and heads.

        Queries count by the square root: the gradients' second moment is then the divergence's Gauss-Newton matrix.
        """
        scores = scores + self.mask
        logs = scores.log_softmax(-1)
        noise = self.noise(scores.shape, generator).clamp_min(1e-20).log().neg().log()
        chosen = (logs.detach() - noise.to(logs)).argmax(-1, keepdim=True)
        return -(logs.gather(-1, chosen).squeeze(-1) * self.counts.sqrt()).sum()

    @staticmethod
    def noise(shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """What `drawn` draws with for scores of a shape, uniform in [0, 1)."""
        return torch.rand(shape, generator=generator)


class _CrossEntropy(torch.autograd.Function):
    """-sum_j p_j log softmax(s)_j of every row, in a third of the time of autograd: passes over memory count."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, attention: Tensor, mask: Tensor) -> Tensor:
        scores = scores + mask
        product = torch.linalg.vecdot(attention, scores)
        largest = scores.amax(-1, keepdim=True)
        softmax = scores.sub_(largest).exp_()
        total = softmax.sum(-1, keepdim=True)
        ctx.save_for_backward(softmax.div_(total), attention)
        return total.log().add_(largest).squeeze(-1) - product

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        softmax, attention = ctx.saved_tensors
        return (softmax - attention).mul_(gradient[..., None]), None, None


def descend(
    value: Callable[[Tensor], tuple[Tensor, Tensor]],
    guess: Callable[[Tensor], Tensor],
    start: Tensor,
    steps: int,
    watch: Callable[[Tensor], float],
    every: int = 2,
    memory: int = 20,
) -> tuple[Tensor, list[float]]:
    """L-BFGS whose first guess at the inverse Hessian is given, stopped where watched data no longer gains.

    Args:
        value: loss and gradient at a point, a flat vector.
        guess: a gradient times the guessed inverse Hessian.
        start: where to begin.
        steps: at most so many.
        watch: the loss on data that `value` does not see.
        every: so many steps from one look at that data to the next.
        memory: how many steps the inverse Hessian is made of.

    Returns:
        The point with the least watched loss, the start if none is below it; and the watched losses, the start's first.
    """
    point = start
    loss, gradient = value(point)
    best, looked, seen = start, start, [watch(start)]
    pairs: list[tuple[Tensor, Tensor, Tensor]] = []
    for step in range(1, steps + 1):
        direction = _direction(gradient, pairs, guess)
        slope = (direction * gradient).sum()
        for length in (1.0, 0.3, 0.1, 0.03, 0.01):
            new_point = point - length * direction
            new_loss, new_gradient = value(new_point)
            if slope > 0 and new_loss < loss - 1e-4 * length * slope:
                break
        else:
            if not pairs:
                break
            pairs = []
            continue
        move, change = new_point - point, new_gradient - gradient
        product = (move * change).sum()
        if product > 0:
            pairs = [*pairs[1 - memory :], (move, change, product)]
        point, loss, gradient = new_point, new_loss, new_gradient
        if step % every == 0:
            looked = point
            seen.append(watch(point))
            if seen[-1] < min(seen[:-1]):
                best = point
            if seen[-1] > min(seen[:-1]) * (1 - 1e-3):
                break
    if point is not looked:
        seen.append(watch(point))
        if seen[-1] < min(seen[:-1]):
            best = point
    return best, seen


def _direction(
    gradient: Tensor, pairs: Sequence[tuple[Tensor, Tensor, Tensor]], guess: Callable[[Tensor], Tensor]
) -> Tensor:
    """The L-BFGS direction (to be subtracted): two loops around the guess, scaled by the last step."""
    direction, shares = gradient, []
    for move, change, product in reversed(pairs):
        shares.append((move * direction).sum() / product)
        direction = direction - shares[-1] * change
    direction = guess(direction)
    if pairs:
        _, change, product = pairs[-1]
        direction = direction * (product / (change * guess(change)).sum())
    for (move, change, product), share in zip(pairs, reversed(shares), strict=True):
        direction = direction + (share - (change * direction).sum() / product) * move
    return direction
