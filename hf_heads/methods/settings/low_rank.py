"""The settings of per-head low rank."""

from __future__ import annotations

import dataclasses
from dataclasses import MISSING, dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from hf_heads.attention.spec import HeadsSpec, option
from hf_heads.core.errors import HeadsError
from hf_heads.methods.base import About
from hf_heads.methods.settings.ranks import RankSpec

if TYPE_CHECKING:
    from torch import Tensor

    from hf_heads.core.dense import AttentionShape, DenseAttention
    from hf_heads.core.statistics import BlockStatistics


@dataclass(frozen=True)
class LowRankSpec(RankSpec):
    """Queries and keys of width rank / heads per head; heads * head_dim is lossless.

    Attributes:
        value_rank: the same for values: their width times the number of heads (of keys and values, where several query
            heads read one). Without a rank beside it, queries and keys stay as they are.
    """

    method: ClassVar[str] = "low-rank"
    value_rank: int | None = option(
        None, "width of the values, all heads together; alone it leaves queries and keys as they are", at_least=1
    )

    def step(self, shape: AttentionShape) -> int:
        return shape.heads

    def tail(self, dense: DenseAttention, statistics: BlockStatistics) -> Tensor:
        from hf_heads.core.ranks import head_tail  # imports torch, and only planning needs it

        return head_tail(dense, statistics)

    @classmethod
    def block_type(cls) -> type[HeadsSpec]:
        return ResolvedLowRank

    def resolve(
        self, shape: AttentionShape, where: str = "the block", before: HeadsSpec | None = None
    ) -> HeadsSpec | None:
        step, limit = shape.memory_heads, shape.memory_heads * shape.value_dim
        stays = shape.turned or shape.normed or shape.kv_heads is not None
        if stays and (self.rank is not None or self.energy is not None or self.value_rank is None):
            raise HeadsError(
                f"queries and keys of {where} stay as they are, since positions turn them or heads share them: give "
                f"value_rank alone, from {step} to {limit} (lossless)"
            )
        alone = self.rank is None and self.energy is None
        if before is not None and alone and (shape.kv_heads is not None or before.method != "pruned"):
            raise HeadsError(f"{where} is {before.method} already: convert the original instead")
        if self.value_rank is None:
            return super().resolve(shape, where, before)
        found = self._fitting(self.value_rank, step, limit, where, before)
        if not alone:
            return super(LowRankSpec, found).resolve(shape, where, before)
        if self.allocate:
            raise HeadsError("allocate spreads a rank of queries and keys; leave it out, or give a rank")
        self.check_heads(shape, where)
        return found.settle(heads=shape.heads)

    def _fitting(self, rank: int, step: int, limit: int, where: str, before: HeadsSpec | None) -> Self:
        """These settings with a value rank that fits a block."""
        if before is not None:  # heads may have gone, so what fits the host need not fit here
            return dataclasses.replace(self, value_rank=max(step, min(rank, limit) // step * step))
        if rank > limit:
            raise HeadsError(f"value rank {rank} exceeds the {limit} of {where}, which is already lossless")
        if rank % step:
            raise HeadsError(
                f"value rank {rank} is not a multiple of {step}, the number of value heads of {where}; "
                f"try {max(step, rank // step * step)} or {min(limit, (rank // step + 1) * step)}"
            )
        return self

    def reshape(self, shape: AttentionShape) -> AttentionShape:
        found = super().reshape(shape)
        if self.value_rank is None:
            return found
        return dataclasses.replace(found, value_dim=self.value_rank // shape.memory_heads)

    def refines(self) -> bool:
        return self.rank is not None


@dataclass(frozen=True, kw_only=True)
class ResolvedLowRank(LowRankSpec):
    """Low rank of one block's heads."""

    heads: int = option(MISSING, "number of heads", command=False, at_least=0)
    rank: int | None = option(None, "width of the query-key space, all heads together", at_least=1)

    def parameters(self, shape: AttentionShape) -> int:
        shape = self.reshape(shape)
        if self.rank is None:
            return shape.parameters
        return self.rank * (shape.query_width + 1 + shape.key_width) + shape.value_parameters

    def cache_per_token(self, shape: AttentionShape) -> int:
        shape = self.reshape(shape)
        return shape.cache_per_token if self.rank is None else self.rank + shape.heads * shape.value_dim


ABOUT = About(
    LowRankSpec,
    "narrower queries and keys, or values, head by head",
    "Eckart, Young 1936; the per-head baseline of arXiv 2006.16362",
    handles=("rotary", "groups", "pairs"),
)
