"""The settings of per-head low rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hf_heads.core.decompositions import head_svd
from hf_heads.core.dense import AttentionShape, DenseAttention
from hf_heads.core.statistics import BlockStatistics
from hf_heads.core.whitening import augmented_factors
from hf_heads.methods.settings.ranks import RankSpec


@dataclass(frozen=True)
class LowRankSpec(RankSpec):
    """Queries and keys of width rank / heads per head; heads * head_dim is lossless."""

    method: ClassVar[str] = "low-rank"

    def step(self, shape: AttentionShape) -> int:
        return shape.heads

    def tail(self, dense: DenseAttention, statistics: BlockStatistics) -> Tensor:
        values = head_svd(*augmented_factors(dense, statistics)[:2])[1].square()
        lost = values.flip(1).cumsum(1).flip(1).sum(0)  # by width per head; the last entry is next to nothing
        return torch.cat([lost[:-1].repeat_interleave(dense.shape.heads), lost[-1:]])

    def parameters(self, shape: AttentionShape) -> int:
        assert self.rank is not None
        return self.rank * (shape.query_width + 1 + shape.key_width) + shape.value_parameters

    def cache_per_token(self, shape: AttentionShape) -> int:
        assert self.rank is not None
        return self.rank + shape.heads * shape.value_dim
