"""Whether heads matter alike on two tasks, domains or moments: correlation of their scores (arXiv 1905.10650)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hf_heads.core.errors import HeadsError

_DRAWS = 10_000


class Agreement(NamedTuple):
    """How alike two sets of scores are.

    Attributes:
        pearson: correlation of the scores, as the paper reports it.
        spearman: correlation of their ranks.
        p: how likely as large a correlation (Pearson's, of either sign) is when scores belong to heads at random.
        heads: how many heads there are.
    """

    pearson: float
    spearman: float
    p: float
    heads: int


def agreement(one: Mapping[str, Sequence[float]], other: Mapping[str, Sequence[float]], seed: int = 0) -> Agreement:
    """Correlation of the scores of the same heads.

    Args:
        one, other: by block the scores of its heads, `HeadScores.importance` say, or changes of ablation tables.
        seed: of the permutations.

    Raises:
        HeadsError: the two are not of the same heads, or of fewer than three.
    """
    if {name: len(values) for name, values in one.items()} != {name: len(values) for name, values in other.items()}:
        raise HeadsError("scores of different heads cannot be compared: score the same model, or one of the same form")
    first, second = (torch.tensor([value for name in one for value in two[name]]).double() for two in (one, other))
    if len(first) < 3:
        raise HeadsError(f"{len(first)} heads are too few for a correlation; three are the least")
    generator, found = torch.Generator().manual_seed(seed), _correlation(first, second)
    drawn = torch.stack([first[torch.randperm(len(first), generator=generator)] for _ in range(_DRAWS)])
    as_large = int((_correlation(drawn, second).abs() >= found.abs() * (1 - 1e-12)).sum())
    ranks = _correlation(_ranks(first), _ranks(second))
    return Agreement(float(found), float(ranks), (1 + as_large) / (1 + _DRAWS), len(first))


def _correlation(first: Tensor, second: Tensor) -> Tensor:
    """Of vectors along the last dimension; 0 where one of them is the same throughout."""
    first, second = (one - one.mean(-1, keepdim=True) for one in (first, second))
    norms = first.norm(dim=-1) * second.norm(dim=-1)
    return (first * second).sum(-1) / norms.clamp_min(1e-300)


def _ranks(values: Tensor) -> Tensor:
    """Ranks along the last dimension; equal values share the mean of theirs."""
    below = (values[:, None] > values).sum(1)
    return below + ((values[:, None] == values).sum(1) + 1) / 2
