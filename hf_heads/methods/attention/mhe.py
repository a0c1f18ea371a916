"""The forward of head embeddings: heads share one head's projections, told apart by embeddings (arXiv 2310.07911)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import initialization as init

from hf_heads.attention.hosts.reading import read_output
from hf_heads.attention.module import HeadsAttention
from hf_heads.core.dense import AttentionShape, DenseAttention, split_heads

if TYPE_CHECKING:
    from hf_heads.methods.settings.mhe import ResolvedMhe


class MheAttention(HeadsAttention):
    """Multi-query attention, which is what head embeddings amount to.

    mul: keys stay shared, (1 + e^K) moves to the queries and (1 + e^V) to the context. add: q_h e_h^K is the same for
    all keys, so softmax drops it (it is added in training, for its gradient to be zero and not missing), and e_h^V is
    added to the context, times what attention dropout has left of the weights' sum.
    """

    replaces: ClassVar[tuple[str, ...]] = ("query", "key", "value")
    spec: ResolvedMhe

    @property
    def shared(self) -> tuple[str, ...]:
        sides = {"query": self.spec.groups_qk, "key": self.spec.groups_qk, "value": self.spec.groups_v}
        of = [side for side, groups in sides.items() if groups < self.shape.heads]
        return (*(f"shared_{side}" for side in of), *(f"{side}_embedding" for side in of))

    @property
    def inertia(self) -> int:
        return self.spec.inertia or 1

    def inertia_of(self, side: str) -> int:
        """That of a side's projection and embeddings: `query`, `key` or `value`."""
        return self.inertia if f"shared_{side}" in self.shared else 1

    @property
    def score_scaling(self) -> float:
        return self.scaling / self.inertia_of("query") ** 2  # one for queries, one for keys

    def build(self, shape: AttentionShape) -> None:
        groups_qk, groups_v = self.spec.groups_qk, self.spec.groups_v
        self.shared_query = nn.Linear(shape.query_width, groups_qk * shape.head_dim, bias=shape.biases.query)
        self.shared_key = nn.Linear(shape.key_width, groups_qk * shape.head_dim, bias=shape.biases.key)
        self.shared_value = nn.Linear(shape.key_width, groups_v * shape.value_dim, bias=shape.biases.value)
        self.query_embedding = nn.Parameter(torch.empty(shape.heads, shape.head_dim))
        self.key_embedding = nn.Parameter(torch.empty(shape.heads, shape.head_dim))
        self.value_embedding = nn.Parameter(torch.empty(shape.heads, shape.value_dim))

    def init_weights(self) -> None:
        std = float(getattr(self.config, "initializer_range", getattr(self.config, "init_std", 0.02)))
        for embedding in (self.query_embedding, self.key_embedding, self.value_embedding):
            init.normal_(embedding, mean=0.0, std=std)

    @property
    def _multiplies(self) -> bool:
        return self.spec.variant == "mul"

    @property
    def _drops_weights(self) -> bool:
        return self.training and self.attention_dropout > 0

    def project_query(self, hidden_states: Tensor) -> Tensor:
        groups = self.spec.groups_qk
        # (batch, groups, 1, target, head_dim), then every head of a group its own
        shared = self.shared_query(hidden_states).unflatten(-1, (groups, -1)).transpose(1, 2)[:, :, None]
        if self._multiplies:
            inertia = self.inertia_of("query")
            own = (1 + self.query_embedding / inertia) * (1 + self.key_embedding / inertia)
            query = shared * own.unflatten(0, (groups, -1))[:, :, None]
        else:
            query = shared + self.query_embedding.unflatten(0, (groups, -1))[:, :, None]
        return query.flatten(1, 2)

    def project_memory(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        return self.shared_key(memory)[:, None], self.shared_value(memory)[:, None]

    def unpack_memory(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        groups_qk, groups_v = self.spec.groups_qk, self.spec.groups_v
        key = key.squeeze(1).unflatten(-1, (groups_qk, -1)).transpose(1, 2)
        value = value.squeeze(1).unflatten(-1, (groups_v, -1)).transpose(1, 2)
        if not self._multiplies and self._drops_weights:
            value = torch.cat([value, value.new_ones(*value.shape[:-1], 1)], -1)
        return key, value, None

    def row_term(self, query: Tensor) -> Tensor | None:
        if self._multiplies or not torch.is_grad_enabled() or not self.key_embedding.requires_grad:
            return None
        return self.score_scaling * (query @ self.key_embedding[..., None])

    def finish_context(self, context: Tensor) -> Tensor:
        embedding, inertia = self.value_embedding[:, None], self.inertia_of("value")
        if self._multiplies:
            return context * ((1 + embedding / inertia) / inertia)
        if self._drops_weights:
            return (context[..., :-1] + context[..., -1:] * embedding) / inertia
        return (context + embedding) / inertia

    def to_dense(self, output: nn.Linear) -> DenseAttention:
        spec, shape = self.spec, self.shape
        found: dict[str, Any] = {}
        for name, groups in (("query", spec.groups_qk), ("key", spec.groups_qk), ("value", spec.groups_v)):
            shared: nn.Linear = getattr(self, f"shared_{name}")
            inertia = self.inertia_of(name)
            embedding = getattr(self, f"{name}_embedding").detach() / inertia
            weight = split_heads(shared.weight.detach(), groups) / inertia
            bias = weight.new_zeros(groups, weight.shape[-1]) if shared.bias is None else shared.bias.detach() / inertia
            weight, bias = (one.repeat_interleave(shape.heads // groups, 0) for one in (weight, bias.view(groups, -1)))
            if self._multiplies:
                weight, bias = weight * (1 + embedding[:, None]), bias * (1 + embedding)
            else:
                bias = bias + embedding
            found |= {name: weight, f"{name}_bias": bias}
        found["content_bias"] = found["key"].new_zeros(shape.heads, shape.key_width)
        return DenseAttention(**found, scale=self.scaling, biases=shape.biases, **read_output(output, shape.heads))
