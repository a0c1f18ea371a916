"""The forward of per-head low rank: narrower queries and keys, head by head."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hf_heads.attention.hosts.reading import read_value_output
from hf_heads.attention.kernels import shared_scores
from hf_heads.attention.module import HeadsAttention
from hf_heads.core.dense import AttentionShape, DenseAttention, split_heads

if TYPE_CHECKING:
    from hf_heads.methods.settings.low_rank import ResolvedLowRank


class LowRankAttention(HeadsAttention):
    """Standard attention with narrow queries and keys."""

    spec: ResolvedLowRank

    def build(self, shape: AttentionShape) -> None:
        rank = self.spec.rank
        self.narrow_query = nn.Linear(shape.query_width, rank)
        self.narrow_key = nn.Linear(shape.key_width, rank, bias=False)

    def project_query(self, hidden_states: Tensor) -> Tensor:
        return self.narrow_query(hidden_states).unflatten(-1, (self.shape.heads, -1)).transpose(1, 2)

    def project_memory(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        key = self.narrow_key(memory).unflatten(-1, (self.shape.heads, -1)).transpose(1, 2)
        return key, self.split_value(memory)

    def scores(self, hidden_states: Tensor, memory: Tensor) -> Tensor:
        key = self.narrow_key(memory).unflatten(-1, (self.shape.heads, -1)).transpose(1, 2)
        return shared_scores(self.project_query(hidden_states), key, self.scaling, None)

    def to_dense(self, output: nn.Linear) -> DenseAttention:
        heads = self.shape.heads
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
