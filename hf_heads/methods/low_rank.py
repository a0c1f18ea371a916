"""Per-head low rank: narrower queries and keys, head by head; the rival of collaborative heads at equal parameters."""

from __future__ import annotations

from hf_heads.core.decompositions import low_rank
from hf_heads.core.dense import DenseAttention
from hf_heads.core.statistics import BlockStatistics
from hf_heads.core.whitening import augmented_factors
from hf_heads.methods.attention.low_rank import LowRankAttention
from hf_heads.methods.base import Converted
from hf_heads.methods.settings.low_rank import ABOUT, LowRankSpec, ResolvedLowRank


def from_dense(dense: DenseAttention, statistics: BlockStatistics, spec: ResolvedLowRank) -> Converted:
    """Narrow queries and keys of a block: the best ones for its scores, biases included, head by head."""
    query, key, query_inverse, key_inverse = augmented_factors(dense, statistics)
    narrow_query, narrow_key, error = low_rank(query, key, spec.rank // dense.shape.heads)
    u, v = query_inverse @ narrow_query, key_inverse @ narrow_key
    weights = {
        "narrow_query.weight": u[:, :-1].transpose(1, 2).flatten(0, 1) / dense.scale,
        "narrow_query.bias": u[:, -1].flatten() / dense.scale,
        "narrow_key.weight": v.transpose(1, 2).flatten(0, 1),
    }
    return Converted(weights, error)


METHOD = ABOUT.method(LowRankAttention, from_dense, ("narrow_query.weight", "narrow_query.bias", "narrow_key.weight"))

__all__ = ["METHOD", "LowRankAttention", "LowRankSpec", "from_dense"]
