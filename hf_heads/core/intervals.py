"""Intervals of differences and of figures over examples, so that "no measurable loss" is said by an interval."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_CHUNK = 2**22  # draws held at a time


def paired_interval(
    differences: Tensor, *, resamples: int = 10_000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean difference.

    Args:
        differences: (examples,) or (examples, several): score with minus score without, for every example.
        resamples: how many times as many examples are drawn anew, with replacement.
        level: share of the resampled means that the interval covers.
        seed: of the draws.

    Returns:
        Lower and upper end; both are 0-width where there is but one example.
    """
    values = differences.double().flatten()
    generator = torch.Generator().manual_seed(seed)
    means = [values[drawn].mean(1) for drawn in _draws(len(values), resamples, generator, _CHUNK)]
    return _percentiles(torch.cat(means), level)


class Estimate(NamedTuple):
    """A figure over examples, and the ends of its interval."""

    value: float
    low: float
    high: float


def paired_scores(
    statistics: Sequence[Tensor],
    value: Callable[[Tensor], Tensor],
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> list[tuple[Estimate, Estimate]]:
    """Percentile bootstrap intervals of a figure of several models, computed anew for every resample.

    Args:
        statistics: for every model (examples, several): what each example adds to the figure. The first model is the
            reference; all are resampled by the same draws.
        value: statistics (..., examples, several) to the figure (...), such as a ratio of sums or a correlation.
        resamples: how many times as many examples are drawn anew, with replacement.
        level: share of the resampled figures that an interval covers.
        seed: of the draws.

    Returns:
        For every model its figure, and its figure minus the reference's on the same drawn examples.
    """
    models = [one.double() for one in statistics]
    examples = len(models[0])
    generator = torch.Generator().manual_seed(seed)
    found: list[list[Tensor]] = [[] for _ in models]
    for drawn in _draws(examples, resamples, generator, _CHUNK // max(models[0].shape[1], 1)):
        for values, one in zip(found, models, strict=True):
            values.append(value(one[drawn]))
    whole = [float(value(one)) for one in models]
    drawn_values = [torch.cat(values) for values in found]
    return [
        (
            Estimate(here, *_percentiles(values, level)),
            Estimate(here - whole[0], *_percentiles(values - drawn_values[0], level)),
        )
        for here, values in zip(whole, drawn_values, strict=True)
    ]


def _draws(examples: int, resamples: int, generator: torch.Generator, chunk: int) -> Iterator[Tensor]:
    """Numbers of drawn examples, (some resamples, examples), about `chunk` of them at a time."""
    rows = max(1, chunk // max(examples, 1))
    for begin in range(0, resamples, rows):
        yield torch.randint(examples, (min(rows, resamples - begin), examples), generator=generator)


def _percentiles(values: Tensor, level: float) -> tuple[float, float]:
    tail = (1 - level) / 2
    low, high = values.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high


def sign_test(differences: Tensor, *, resamples: int = 10_000, seed: int = 0) -> float:
    """Two-sided p value of a mean difference being zero, by turning the signs of examples at random.

    Args:
        differences: (examples,): score with minus score without, for every example.
        resamples: how many times signs are drawn; p is at least 1 / (resamples + 1).
        seed: of the draws.
    """
    values, generator = differences.double().flatten(), torch.Generator().manual_seed(seed)
    values = values[values != 0]  # they stay zero whatever their sign
    if not len(values):
        return 1.0
    wanted, rows, as_large = float(values.sum().abs()), max(1, _CHUNK // len(values)), 0
    for begin in range(0, resamples, rows):
        shape = min(rows, resamples - begin), len(values)
        signs = torch.randint(2, shape, generator=generator, dtype=torch.int8).double() * 2 - 1
        as_large += int(((signs @ values).abs() >= wanted * (1 - 1e-12)).sum())
    return (1 + as_large) / (1 + resamples)


def swap_test(
    one: Tensor, other: Tensor, value: Callable[[Tensor], Tensor], *, resamples: int = 2000, seed: int = 0
) -> float:
    """Two-sided p value of two models having the same figure, by swapping their examples at random.

    Args:
        one, other: of each model (examples, several): what every example adds to the figure.
        value: statistics (..., examples, several) to the figure (...).
        resamples: how many times examples are swapped; p is at least 1 / (resamples + 1).
        seed: of the draws.
    """
    one, other = one.double(), other.double()
    if torch.equal(one, other):
        return 1.0
    wanted = float((value(one) - value(other)).abs()) * (1 - 1e-12)
    generator, rows, as_large = torch.Generator().manual_seed(seed), max(1, _CHUNK // one.numel()), 0
    for begin in range(0, resamples, rows):
        shape = min(rows, resamples - begin), len(one), 1
        swapped = torch.randint(2, shape, generator=generator, dtype=torch.int8).bool()
        found = value(torch.where(swapped, other, one)) - value(torch.where(swapped, one, other))
        as_large += int((found.abs() >= wanted).sum())
    return (1 + as_large) / (1 + resamples)


def holm(values: Sequence[float]) -> list[float]:
    """p values corrected for their number: how small a level all false alarms together can have and this one still be.

    The k-th smallest of n is multiplied by n - k + 1, and none is below a smaller one (Holm 1979).
    """
    found, highest = [0.0] * len(values), 0.0
    for place, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        highest = max(highest, min(1.0, values[index] * (len(values) - place)))
        found[index] = highest
    return found
