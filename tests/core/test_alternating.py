"""Shared values and their outputs, fitted in turn: against what made the data, and never worse on what is held out."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_heads.core.alternating import Attended, alternate

ROWS, HEADS, WIDTH, DIM, OUT, GROUPS = 600, 4, 12, 3, 12, 2


def drawn(noise: float) -> tuple[Attended, Tensor, Tensor]:
    """Rows whose targets come of values and outputs, and of a constant; and these values and outputs."""
    dice = torch.Generator().manual_seed(0)
    contexts = torch.randn(ROWS, HEADS, WIDTH, generator=dice) * torch.linspace(0.3, 2, WIDTH) + 0.7
    value = torch.randn(GROUPS, WIDTH, DIM, generator=dice)
    output = torch.randn(HEADS * DIM, OUT, generator=dice)
    targets = naive(contexts, value, output) + 5 + noise * torch.randn(ROWS, OUT, generator=dice)
    weights = torch.rand(ROWS, generator=dice) + 0.5
    return Attended(contexts, targets, weights, torch.arange(ROWS) % 5 == 0), value, output


def naive(contexts: Tensor, value: Tensor, output: Tensor) -> Tensor:
    """sum_h c_h V_g(h) O_h, head by head."""
    found = torch.zeros(len(contexts), output.shape[1])
    for head in range(contexts.shape[1]):
        shared = value[head * len(value) // contexts.shape[1]]
        found += contexts[:, head] @ shared @ output[head * DIM : (head + 1) * DIM]
    return found


def share_left(data: Attended, value: Tensor, output: Tensor, bias: Tensor) -> float:
    """Of the weighted squares of rows that are held out, about their mean."""
    rows, weights = data.held_out, data.weights[data.held_out][:, None]
    left = data.targets - naive(data.contexts, value, output) - bias
    about = data.targets - data.targets[~rows].mean(0)
    return float((weights * left[rows].square()).sum() / (weights * about[rows].square()).sum())


def test_values_that_are_off_are_fitted():
    data, value, output = drawn(0.0)
    off = value + 0.3 * torch.randn(value.shape, generator=torch.Generator().manual_seed(1))
    best = min(share_left(data, off, *ridge(data, off, pull)) for pull in (1e-6, 1e-4, 1e-2))
    found = alternate(data, off, output)
    assert found is not None
    left = share_left(data, found.value, found.output, found.bias)
    assert left < 0.2 * best and 0.5 < found.gain <= 1


def ridge(data: Attended, value: Tensor, pull: float) -> tuple[Tensor, Tensor]:
    """The best outputs and bias for values, by the normal equations of weighted rows."""
    rows = ~data.held_out
    parts = torch.cat(
        [data.contexts[:, head] @ value[head * GROUPS // HEADS] for head in range(HEADS)] + [torch.ones(ROWS, 1)], 1
    )
    known, weights = parts[rows].double(), data.weights[rows].double()[:, None]
    gram = known.T @ (weights * known)
    solved = torch.linalg.solve(
        gram + pull * gram.diagonal().mean() * torch.eye(len(gram)), known.T @ (weights * data.targets[rows])
    ).float()
    return solved[:-1], solved[-1]


def test_values_that_are_right_stay():
    data, value, output = drawn(0.0)
    found = alternate(data, value, output)
    assert found is None or share_left(data, found.value, found.output, found.bias) < 1e-6


def test_what_is_noise_is_not_fitted():
    data, value, output = drawn(0.0)
    dice = torch.Generator().manual_seed(2)
    noise = Attended(data.contexts, torch.randn(ROWS, OUT, generator=dice), data.weights, data.held_out)
    assert alternate(noise, value, output) is None
    few = Attended(*(getattr(data, name)[:8] for name in ("contexts", "targets", "weights", "held_out")))
    assert alternate(few, value, output) is None
