"""Per-head low rank: narrower queries and keys, or values; the rival of collaborative heads at equal parameters."""

from __future__ import annotations

from torch import Tensor

from hf_heads.core.decompositions import low_rank
from hf_heads.core.dense import DenseAttention, merge_heads
from hf_heads.core.narrow_values import ValueMaps
from hf_heads.core.statistics import BlockStatistics
from hf_heads.core.whitening import augmented_factors
from hf_heads.methods.attention.low_rank import LowRankAttention
from hf_heads.methods.base import Converted
from hf_heads.methods.settings.low_rank import ABOUT, LowRankSpec, ResolvedLowRank


def from_dense(dense: DenseAttention, statistics: BlockStatistics, spec: ResolvedLowRank) -> Converted:
    """Narrow queries and keys of a block: the best ones for its scores, biases included, head by head.

    Narrow values are those that keep most of the value-output maps V_h O_h on the data, by themselves where queries and
    keys stay.
    """
    read = dense.shared or range(len(dense.query))
    groups = [[head for head in range(len(dense.query)) if read[head] == one] for one in sorted(set(read))]
    weights, error = (
        (_as_it_is(dense, groups), None) if spec.rank is None else _narrow_scores(dense, statistics, spec.rank)
    )
    if spec.value_rank is None:
        return Converted(weights, error)
    values = ValueMaps(dense, statistics).narrowed(groups, spec.value_rank // len(groups))
    weights |= {
        "value.weight": merge_heads(values.value),
        "value.bias": values.value_bias.flatten(),
        "output.weight": values.output.flatten(0, 1).T,
        "output.bias": values.output_bias,
    }
    return Converted(weights, values.error if error is None else ((error**2 + values.error**2) / 2) ** 0.5)


def _as_it_is(dense: DenseAttention, groups: list[list[int]]) -> dict[str, Tensor]:
    """Queries, and the key of the first head that reads each."""
    found = {}
    for name, heads in (("query", list(range(len(dense.query)))), ("key", [group[0] for group in groups])):
        found[f"{name}.weight"] = merge_heads(getattr(dense, name)[heads])
        found[f"{name}.bias"] = getattr(dense, f"{name}_bias")[heads].flatten()
    return found


def _narrow_scores(dense: DenseAttention, statistics: BlockStatistics, rank: int) -> tuple[dict[str, Tensor], float]:
    """Queries and keys of so many channels, all heads together, and the share of the scores that they lose."""
    query, key, query_inverse, key_inverse = augmented_factors(dense, statistics)
    narrow_query, narrow_key, error = low_rank(query, key, rank // dense.shape.heads)
    u, v = query_inverse @ narrow_query, key_inverse @ narrow_key
    weights = {
        "narrow_query.weight": u[:, :-1].transpose(1, 2).flatten(0, 1) / dense.scale,
        "narrow_query.bias": u[:, -1].flatten() / dense.scale,
        "narrow_key.weight": v.transpose(1, 2).flatten(0, 1),
    }
    return weights, error


METHOD = ABOUT.method(LowRankAttention, from_dense, ("narrow_query.weight", "narrow_query.bias", "narrow_key.weight"))

__all__ = ["METHOD", "LowRankAttention", "LowRankSpec", "from_dense"]
