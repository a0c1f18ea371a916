"""Shared values and the output projection behind them, fitted in turn to what a block should put out.

Heads that share values put out sum_h c_h V_g(h) O_h + b, c_h what head h attends to. Given V, the best O is a ridge
regression; given O, the best V is one as well, solved by conjugate gradients. Both pull towards what was there before.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_RIDGES = tuple(10.0 ** (exponent / 2) for exponent in range(-6, 2))
_ROUNDS, _STEPS = 2, 6
_PULL = 0.1  # towards the values before, as a share of the mean curvature
_FLOOR = 1e-4  # a direction with less than this share of the largest one's energy counts as if it had so much


@dataclass(frozen=True)
class Attended:
    """What heads attend to, and what their block should put out.

    Attributes:
        contexts: c, (rows, heads, width), the attention's mean of the memory.
        targets: (rows, output_width)
        weights: (rows,), what an error counts for.
        held_out: (rows,), True for what is watched, not fitted.
    """

    contexts: Tensor
    targets: Tensor
    weights: Tensor
    held_out: Tensor

    def means(self) -> tuple[Tensor, Tensor]:
        """Of the rows that are fitted, which a bias keeps: contexts (heads, width) and targets (output_width,)."""
        weights = self.weights * ~self.held_out
        weights = weights / weights.sum()
        return torch.einsum("n,nhd->hd", weights, self.contexts), weights @ self.targets


@dataclass(frozen=True)
class Fitted:
    """Values and outputs that fit better.

    Attributes:
        value: V, (groups, width, value_dim), neighbouring heads in each group.
        output: O, (heads * value_dim, output_width)
        bias: b, (output_width,)
        gain: share of the squared error that both remove on rows that they are not fitted to.
    """

    value: Tensor
    output: Tensor
    bias: Tensor
    gain: float


@dataclass(frozen=True)
class _Rows:
    """Weighted contexts (groups, rows, heads of a group, width) and targets (rows, output_width)."""

    contexts: Tensor
    targets: Tensor

    def features(self, value: Tensor) -> Tensor:
        """c_h V_g(h), (rows, heads * value_dim)."""
        found = torch.bmm(self.contexts.flatten(1, 2), value)
        return found.unflatten(1, self.contexts.shape[1:3]).transpose(0, 1).flatten(1)

    def error(self, value: Tensor, output: Tensor) -> float:
        left = self.targets - self.features(value) @ output
        return float(left.square().sum() / self.targets.square().sum().clamp_min(1e-30))

    def outputs(self, value: Tensor, before: Tensor, ridges: tuple[float, ...]) -> list[Tensor]:
        """The best outputs, by strength of the pull towards those before."""
        features = self.features(value)
        gram = (features.T @ features).double()
        energies, vectors = torch.linalg.eigh(gram)
        energies = energies.clamp_min(0)
        missing = vectors.T @ (features.T @ (self.targets - features @ before)).double()
        mean = energies.mean().clamp_min(1e-30)
        return [before + (vectors @ (missing / (energies + one * mean)[:, None])).float() for one in ridges]

    def values(self, value: Tensor, output: Tensor) -> Tensor:
        """Values that fit better with these outputs: a few steps of preconditioned conjugate gradients."""
        groups, rows, heads, _ = self.contexts.shape
        parts = output.view(groups, heads, -1, output.shape[-1])  # (groups, heads, value_dim, output_width)
        curvature = torch.einsum("grvo,grwo->gvw", parts, parts)
        pull = _PULL * curvature.diagonal(dim1=1, dim2=2).mean().clamp_min(1e-30)
        near = torch.linalg.inv(curvature.double() + pull * torch.eye(curvature.shape[-1], dtype=torch.float64)).float()

        def back(left: Tensor) -> Tensor:
            wanted = (left @ output.T).view(rows, groups, heads, -1).transpose(0, 1).flatten(1, 2)
            return torch.bmm(self.contexts.flatten(1, 2).mT, wanted)

        change = torch.zeros_like(value)
        left = back(self.targets - self.features(value) @ output)
        step = towards = left @ near
        size = (left * step).sum()
        for _ in range(_STEPS):
            if size <= 0:
                break
            pushed = back(self.features(towards) @ output) + pull * len(self.targets) * towards
            far = size / (towards * pushed).sum()
            change, left = change + far * towards, left - far * pushed
            step = left @ near
            size, earlier = (left * step).sum(), size
            towards = step + size / earlier * towards
        return value + change


def alternate(data: Attended, value: Tensor, output: Tensor) -> Fitted | None:
    """Fit values and outputs in turn, as long as rows that are held out are fitted better by it.

    Args:
        data: rows of both kinds.
        value: V to begin with, (groups, width, value_dim)
        output: O to begin with, (heads * value_dim, output_width)

    Returns:
        None where other values fit the rows that are held out no better, or there are too few rows to tell.
    """
    fitted = ~data.held_out
    if int(fitted.sum()) < output.shape[0] or not data.held_out.any():
        return None
    context, target = data.means()
    root, inverse = _roots(data.contexts[fitted] - context)
    shape = (len(value), -1)

    def whitened(rows: Tensor) -> _Rows:
        weights = data.weights[rows].sqrt()
        contexts = (data.contexts[rows] - context) @ inverse
        contexts *= weights[:, None, None]
        targets = (data.targets[rows] - target) * weights[:, None]
        return _Rows(contexts.unflatten(1, shape).transpose(0, 1).contiguous(), targets)

    train, test = whitened(fitted), whitened(data.held_out)
    best = root @ value
    found = train.outputs(best, output, _RIDGES)
    errors = [test.error(best, one) for one in found]
    chosen = min(range(len(errors)), key=errors.__getitem__)
    start, first = test.error(best, output), errors[chosen]
    last = first
    output = found[chosen]
    for _ in range(_ROUNDS):
        other = train.values(best, output)
        (fitting,) = train.outputs(other, output, (_RIDGES[chosen],))
        if not (error := test.error(other, fitting)) < last:
            break
        best, output, last = other, fitting, error
    if not last < first:
        return None
    value = inverse @ best
    kept = torch.einsum("grd,gdv->grv", context.unflatten(0, shape), value).flatten()
    return Fitted(value, output, target - kept @ output, 1 - last / start)


def _roots(contexts: Tensor) -> tuple[Tensor, Tensor]:
    """The root of the contexts' covariance, and its inverse."""
    rows = contexts.flatten(0, 1)
    energies, vectors = torch.linalg.eigh((rows.T @ rows).double() / len(rows))
    energies = energies.clamp_min(float(energies[-1].clamp_min(1e-30)) * _FLOOR)
    root, inverse = (((vectors * energies**power) @ vectors.T).float() for power in (0.5, -0.5))
    return root, inverse
