"""What queries and keys lose at every rank, from the energy of their factors or from a few measurements."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hf_heads.core.decompositions import head_svd, tail_energy
from hf_heads.core.dense import DenseAttention
from hf_heads.core.statistics import BlockStatistics
from hf_heads.core.whitening import augmented_factors, whitened_factors


def shared_tail(dense: DenseAttention, statistics: BlockStatistics) -> Tensor:
    """Energy lost at every rank from 0 to the lossless one, where all heads share one space."""
    return tail_energy(*whitened_factors(dense, statistics))


def head_tail(dense: DenseAttention, statistics: BlockStatistics) -> Tensor:
    """Energy lost at every rank summed over the heads, where each of them is cut to the same width."""
    values = head_svd(*augmented_factors(dense, statistics)[:2])[1].square()
    lost = values.flip(1).cumsum(1).flip(1).sum(0)  # by width per head; the last entry is next to nothing
    return torch.cat([lost[:-1].repeat_interleave(dense.shape.heads), lost[-1:]])


def interpolated(measured: Mapping[int, float], tail: Tensor) -> Tensor:
    """Losses at every rank, (ranks,), from those measured at a few.

    Args:
        measured: loss by rank, ranks rising. Between them the logarithm is linear and never rises.
        tail: energy lost at every rank, (ranks,), whose course a single measurement follows.
    """
    points = list(measured)
    if len(points) == 1:
        return tail / tail[points[0]].clamp_min(1e-300) * measured[points[0]]
    logs = torch.tensor(list(measured.values()), dtype=torch.float64).clamp_min(1e-12).log()
    ranks, knots = (torch.tensor(one, dtype=torch.float64) for one in (range(len(tail)), points))
    left = torch.searchsorted(knots, ranks).clamp(1, len(points) - 1) - 1
    slope = (logs[left + 1] - logs[left]) / (knots[left + 1] - knots[left])
    return (logs[left] + slope.clamp_max(0) * (ranks - knots[left])).exp()
