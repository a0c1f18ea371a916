"""The settings of per-head low rank."""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from typing import TYPE_CHECKING, ClassVar

from hf_heads.attention.spec import HeadsSpec, option
from hf_heads.methods.base import About
from hf_heads.methods.settings.ranks import RankSpec

if TYPE_CHECKING:
    from torch import Tensor

    from hf_heads.core.dense import AttentionShape, DenseAttention
    from hf_heads.core.statistics import BlockStatistics


@dataclass(frozen=True)
class LowRankSpec(RankSpec):
    """Queries and keys of width rank / heads per head; heads * head_dim is lossless."""

    method: ClassVar[str] = "low-rank"

    def step(self, shape: AttentionShape) -> int:
        return shape.heads

    def tail(self, dense: DenseAttention, statistics: BlockStatistics) -> Tensor:
        from hf_heads.core.ranks import head_tail  # imports torch, and only planning needs it

        return head_tail(dense, statistics)

    @classmethod
    def block_type(cls) -> type[HeadsSpec]:
        return ResolvedLowRank


@dataclass(frozen=True, kw_only=True)
class ResolvedLowRank(LowRankSpec):
    """Low rank of one block's heads."""

    heads: int = option(MISSING, "number of heads", command=False, at_least=0)
    rank: int = option(MISSING, "width of the query-key space, all heads together", at_least=1)

    def parameters(self, shape: AttentionShape) -> int:
        return self.rank * (shape.query_width + 1 + shape.key_width) + shape.value_parameters

    def cache_per_token(self, shape: AttentionShape) -> int:
        return self.rank + shape.heads * shape.value_dim


ABOUT = About(
    LowRankSpec,
    "narrower queries and keys, head by head",
    "Eckart, Young 1936; the per-head baseline of arXiv 2006.16362",
)
