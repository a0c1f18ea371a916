"""Pruned heads: the least important heads are gone, and their rows of every matrix with them (arXiv 1905.10650)."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_heads.core.dense import DenseAttention, merge_heads
from hf_heads.core.statistics import BlockStatistics
from hf_heads.methods.attention.pruned import PrunedAttention
from hf_heads.methods.base import Converted
from hf_heads.methods.settings.pruned import ABOUT, PrunedSpec, ResolvedPruned


def from_dense(dense: DenseAttention, statistics: BlockStatistics, spec: ResolvedPruned) -> Converted:
    """The rows of the heads that stay; the error is the share of the value-output maps that goes."""
    assert spec.places is not None
    stay = torch.tensor(spec.places, dtype=torch.long, device=dense.query.device)
    weights = {"output.weight": dense.output[stay].flatten(0, 1).T, "output.bias": dense.output_bias}
    # Of heads that read one key and value head, the first brings it.
    readers = stay if spec.shared is None else stay[[spec.shared.index(one) for one in range(len(set(spec.shared)))]]
    for name in ("query", "key", "value") if spec.places else ():
        rows = stay if name == "query" else readers
        weights[f"{name}.weight"] = merge_heads(getattr(dense, name)[rows])
        weights[f"{name}.bias"] = getattr(dense, f"{name}_bias")[rows].flatten()
    energy = map_energy(dense)
    lost = 1 - energy[stay].sum() / energy.sum().clamp_min(1e-300)
    return Converted(weights, float(lost.clamp_min(0).sqrt()))


def map_energy(dense: DenseAttention) -> Tensor:
    """|W_V,h O_h|^2 (Frobenius) of every head, (heads,) in float64, without forming the product."""
    double = dense.double()
    return torch.einsum("hij,hij->h", double.value.mT @ double.value, double.output @ double.output.mT)


METHOD = ABOUT.method(PrunedAttention, from_dense)

__all__ = ["METHOD", "PrunedAttention", "PrunedSpec", "from_dense", "map_energy"]
