"""Ranks of queries and keys: given, from a total or from an energy, and spread over the blocks."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hf_heads.attention.spec import BlockProfile, HeadsSpec, RankHeads, option
from hf_heads.core.errors import HeadsError

if TYPE_CHECKING:
    from torch import Tensor

    from hf_heads.core.dense import AttentionShape, DenseAttention
    from hf_heads.core.statistics import BlockStatistics


@dataclass(frozen=True)
class RankSpec(HeadsSpec):
    """Settings of a method whose size is a query-key rank summed over the heads."""

    rank: int | None = option(None, "width of the query-key space, all heads together", at_least=1)
    energy: float | None = option(
        None,
        "instead of a rank: keep this share (0-1) of each block's query-key energy",
        stored=False,
        at_least=0,
        at_most=1,
    )
    allocate: bool = option(False, "spread rank x blocks over the blocks by where it saves most", stored=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.energy == 0:
            raise HeadsError("energy is 0: nothing would be kept; a share of 0.9, say, keeps most of the scores")

    def step(self, shape: AttentionShape) -> int:
        """Ranks are multiples of this."""
        return 1

    def lossless_rank(self, shape: AttentionShape) -> int:
        """The rank at which nothing is lost."""
        return min(shape.heads * shape.head_dim, shape.heads * min(shape.query_width, shape.key_width))

    def resolve(
        self, shape: AttentionShape, where: str = "the block", before: HeadsSpec | None = None
    ) -> HeadsSpec | None:
        self.check_heads(shape, where)
        limit, step = self.lossless_rank(shape), self.step(shape)
        if self.energy is not None:
            if self.rank is not None or self.allocate:
                raise HeadsError("energy chooses the ranks itself; leave out rank and allocate")
            return None
        if self.rank is None:
            raise HeadsError(f"{self.method} needs a rank: from {step} to {limit} (lossless) in {where}")
        if before is not None:  # heads may have gone, so what fits the host need not fit here
            return None if self.allocate else self.at_rank(max(step, min(self.rank, limit) // step * step), shape)
        if self.rank > limit:
            raise HeadsError(
                f"rank {self.rank} exceeds heads x head_dim = {limit} of {where}; {limit} is already lossless"
            )
        if self.rank % step:
            raise HeadsError(
                f"rank {self.rank} is not a multiple of {step}, the number of heads of {where}; "
                f"try {max(step, self.rank // step * step)} or {min(limit, (self.rank // step + 1) * step)}"
            )
        return None if self.allocate else self.at_rank(self.rank, shape)

    def needs_profiles(self) -> bool:
        return self.allocate or self.energy is not None

    def at_rank(self, rank: int, shape: AttentionShape) -> HeadsSpec:
        """The settings of one block at a rank that fits it."""
        return self.settle(heads=shape.heads, rank=rank, energy=None, allocate=False)

    def plan(self, blocks: Mapping[str, BlockProfile], rank_heads: RankHeads) -> dict[str, HeadsSpec]:
        if not self.needs_profiles():
            return super().plan(blocks, rank_heads)
        tails = {name: self.tail(block.dense, block.statistics) for name, block in blocks.items()}
        if self.energy is not None:
            ranks = {name: self._energy_rank(tails[name], blocks[name].shape, self.energy) for name in blocks}
        else:
            assert self.rank is not None  # as `resolve` has checked
            losses = {name: self._losses(blocks[name], tails[name], self.rank) for name in blocks}
            ranks = self._allocate(losses, blocks, self.rank)
        return {name: self.at_rank(rank, blocks[name].shape) for name, rank in ranks.items()}

    def tail(self, dense: DenseAttention, statistics: BlockStatistics) -> Tensor:
        """Energy that is lost at every rank from 0 to the lossless one."""
        from hf_heads.core.ranks import shared_tail  # imports torch, and only planning needs it

        return shared_tail(dense, statistics)

    def _energy_rank(self, tail: Tensor, shape: AttentionShape, energy: float) -> int:
        """The smallest rank that keeps the share `energy` of what the tail starts with."""
        step = self.step(shape)
        enough = (tail[::step] <= (1 - energy) * tail[0] + 1e-12 * tail[0]).nonzero()[0, 0]
        return max(step, int(enough) * step)

    def _losses(self, block: BlockProfile, tail: Tensor, rank: int) -> Tensor:
        """What a block loses at every rank, comparable between blocks.

        With data: how far the whole model's output drifts when this block alone is converted, measured at half, all
        and twice the mean rank, the logarithm interpolated. Without: the energy of its weights that is lost.
        """
        from hf_heads.core.ranks import interpolated  # imports torch, and only planning needs it

        limit, step = self.lossless_rank(block.shape), self.step(block.shape)
        if block.trial is None:
            return tail[: limit + 1]
        points = sorted({min(limit, max(step, round(rank * share / step) * step)) for share in (0.5, 1, 2)})
        measured = {point: block.trial(self.at_rank(point, block.shape)) for point in points}
        return interpolated(measured, tail[: limit + 1])

    def _allocate(self, losses: Mapping[str, Tensor], blocks: Mapping[str, BlockProfile], rank: int) -> dict[str, int]:
        """Greedy spread of rank x blocks: each step of rank goes where it saves most."""
        steps = {name: max(self.step(block.shape), _GRAIN) for name, block in blocks.items()}
        limits = {name: self.lossless_rank(block.shape) for name, block in blocks.items()}
        ranks = {name: min(steps[name], limits[name]) for name in blocks}
        budget = rank * len(blocks) - sum(ranks.values())

        def gain(name: str) -> float:
            after = min(ranks[name] + steps[name], limits[name])
            spent = after - ranks[name]
            return float(losses[name][ranks[name]] - losses[name][after]) / spent if spent else 0.0

        queue = [(-gain(name), name) for name in blocks]
        heapq.heapify(queue)
        while queue:
            _, name = heapq.heappop(queue)
            spent = min(steps[name], limits[name] - ranks[name])
            if 0 < spent <= budget:
                ranks[name] += spent
                budget -= spent
                heapq.heappush(queue, (-gain(name), name))
        return ranks


_GRAIN = 4  # ranks are spread in steps of at least this, so that matrix widths stay friendly
