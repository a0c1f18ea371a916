"""The forward of per-head low rank: narrower queries and keys, or values, head by head."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hf_heads.attention.hosts.reading import Projection, even_groups, read_projections, read_value_output
from hf_heads.attention.kernels import shared_scores
from hf_heads.attention.module import HeadsAttention
from hf_heads.core.dense import AttentionShape, DenseAttention, split_heads

if TYPE_CHECKING:
    from hf_heads.methods.settings.low_rank import ResolvedLowRank


class LowRankAttention(HeadsAttention):
    """Standard attention with narrow queries and keys, or with narrow values beside queries and keys as they are."""

    spec: ResolvedLowRank

    def build(self, shape: AttentionShape) -> None:
        rank, site = self.spec.rank, self.site
        if rank is not None:
            self.narrow_query = nn.Linear(shape.query_width, rank)
            self.narrow_key = nn.Linear(shape.key_width, rank, bias=False)
            return
        widths = shape.heads * shape.head_dim, shape.memory_heads * shape.head_dim
        self.add_module(site.query, nn.Linear(shape.query_width, widths[0], bias=shape.biases.query))
        self.add_module(site.key, nn.Linear(shape.key_width, widths[1], bias=shape.biases.key))

    def _projection(self, narrow: str, host: str) -> nn.Linear:
        return getattr(self, host if self.spec.rank is None else narrow)

    def project_query(self, hidden_states: Tensor) -> Tensor:
        query = self._projection("narrow_query", self.site.query)
        return query(hidden_states).unflatten(-1, (self.shape.heads, -1)).transpose(1, 2)

    def project_memory(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        return self._key(memory), self.split_value(memory)

    def _key(self, memory: Tensor) -> Tensor:
        key = self._projection("narrow_key", self.site.key)
        return key(memory).unflatten(-1, (self.shape.memory_heads, -1)).transpose(1, 2)

    def scores(self, hidden_states: Tensor, memory: Tensor) -> Tensor:
        return shared_scores(self.project_query(hidden_states), self._key(memory), self.scaling, None)

    def to_dense(self, output: nn.Linear) -> DenseAttention:
        heads = self.shape.heads
        if self.spec.rank is None:
            site, kv_heads = self.site, self.shape.kv_heads
            one, two, three = (Projection.of(getattr(self, name)) for name in (site.query, site.key, site.value))
            shared = None if kv_heads is None else even_groups(heads, kv_heads)
            return read_projections((one, two, three), output, self.shape, self.scaling, shared)
        query, key = (
            split_heads(self.narrow_query.weight.detach(), heads),
            split_heads(self.narrow_key.weight.detach(), heads),
        )
        query_bias = self.narrow_query.bias.detach().view(heads, -1)
        return DenseAttention(
            query=query,
            key=key,
            query_bias=query_bias,
            key_bias=torch.zeros_like(query_bias),
            content_bias=key.new_zeros(heads, key.shape[1]),
            scale=self.scaling,
            biases=self.shape.biases,
            **read_value_output(self.value_projection, output, heads),
        )
