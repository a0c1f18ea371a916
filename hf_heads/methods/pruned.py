"""Pruned heads: the least important heads are gone, and their rows of every matrix with them (arXiv 1905.10650)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from hf_heads.attention.hosts.reading import read_projections
from hf_heads.attention.module import HeadsAttention
from hf_heads.core.dense import AttentionShape, DenseAttention, merge_heads
from hf_heads.core.statistics import BlockStatistics
from hf_heads.methods.base import Converted
from hf_heads.methods.settings.pruned import ABOUT, PrunedSpec, ResolvedPruned


class PrunedAttention(HeadsAttention):
    """Standard attention with fewer heads, under the host's own names; without heads there are no projections."""

    replaces: ClassVar[tuple[str, ...]] = ("query", "key", "value")
    spec: ResolvedPruned

    def build(self, shape: AttentionShape) -> None:
        site, heads = self.site, shape.heads
        if heads:
            self.add_module(site.query, nn.Linear(shape.query_width, heads * shape.head_dim, bias=shape.bias))
            self.add_module(site.key, nn.Linear(shape.key_width, heads * shape.head_dim, bias=shape.bias))
            self.add_module(site.value, nn.Linear(shape.key_width, heads * shape.value_dim, bias=shape.bias))

    def _heads(self, name: str, inputs: Tensor) -> Tensor:
        return getattr(self, name)(inputs).unflatten(-1, (self.shape.heads, -1)).transpose(1, 2)

    def project_query(self, hidden_states: Tensor) -> Tensor:
        return self._heads(self.site.query, hidden_states)

    def project_memory(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        return self._heads(self.site.key, memory), self._heads(self.site.value, memory)

    def to_dense(self, output: nn.Linear) -> DenseAttention:
        if self.shape.heads:
            return read_projections(self, self.site, output, self.shape, self.scaling)
        return DenseAttention.empty(self.shape, output.bias.detach(), self.scaling)


def from_dense(dense: DenseAttention, statistics: BlockStatistics, spec: ResolvedPruned) -> Converted:
    """The rows of the heads that stay; the error is the share of the value-output maps that goes."""
    assert spec.places is not None
    stay = torch.tensor(spec.places, dtype=torch.long, device=dense.query.device)
    weights = {"output.weight": dense.output[stay].flatten(0, 1).T, "output.bias": dense.output_bias}
    for name in ("query", "key", "value") if spec.places else ():
        weights[f"{name}.weight"] = merge_heads(getattr(dense, name)[stay])
        weights[f"{name}.bias"] = getattr(dense, f"{name}_bias")[stay].flatten()
    energy = map_energy(dense)
    lost = 1 - energy[stay].sum() / energy.sum().clamp_min(1e-300)
    return Converted(weights, float(lost.clamp_min(0).sqrt()))


def map_energy(dense: DenseAttention) -> Tensor:
    """|W_V,h O_h|^2 (Frobenius) of every head, (heads,) in float64, without forming the product."""
    double = dense.double()
    return torch.einsum("hij,hij->h", double.value.mT @ double.value, double.output @ double.output.mT)


METHOD = ABOUT.method(PrunedAttention, from_dense)

__all__ = ["METHOD", "PrunedAttention", "PrunedSpec", "from_dense", "map_energy"]
