"""The forward of head embeddings: heads share one head's projections, told apart by embeddings (arXiv 2310.07911)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import initialization as init

from hf_heads.attention.hosts.reading import Projection, even_groups, read_output
from hf_heads.attention.module import HeadsAttention
from hf_heads.core.dense import AttentionShape, DenseAttention, split_heads

if TYPE_CHECKING:
    from hf_heads.methods.settings.mhe import ResolvedMhe


class MheAttention(HeadsAttention):
    """Multi-query attention, which is what head embeddings amount to.

    mul: keys stay shared, (1 + e^K) moves to the queries and (1 + e^V) to the context. add: q_h e_h^K is the same for
    all keys, so softmax drops it (it is added in training, for its gradient to be zero and not missing), and e_h^V is
    added to the context, times what attention dropout has left of the weights' sum. none: there are no embeddings.

    Where heads keep queries of their own, there are no embeddings: grouped-query attention.
    """

    replaces: ClassVar[tuple[str, ...]] = ("query", "key", "value")
    spec: ResolvedMhe

    @property
    def shared(self) -> tuple[str, ...]:
        if self.spec.own_queries:
            return ()
        of = [side for side, groups in self._groups.items() if groups < self.shape.heads]
        embeddings = () if self.spec.variant == "none" else tuple(f"{side}_embedding" for side in of)
        return (*(f"shared_{side}" for side in of), *embeddings)

    @property
    def _groups(self) -> dict[str, int]:
        return {"query": self.spec.query_groups, "key": self.spec.groups_qk, "value": self.spec.groups_v}

    @property
    def inertia(self) -> int:
        return self.spec.inertia or 1

    def inertia_of(self, side: str) -> int:
        """That of a side's projection and embeddings: `query`, `key` or `value`."""
        return self.inertia if f"shared_{side}" in self.shared else 1

    @property
    def score_scaling(self) -> float:
        return self.scaling / (self.inertia_of("query") * self.inertia_of("key"))

    def build(self, shape: AttentionShape) -> None:
        groups_q, groups_qk, groups_v = self._groups.values()
        query = nn.Linear(shape.query_width, groups_q * shape.head_dim, bias=shape.biases.query)
        if self.spec.own_queries:
            self.own_query = query
        else:
            self.shared_query = query
        self.shared_key = nn.Linear(shape.key_width, groups_qk * shape.head_dim, bias=shape.biases.key)
        self.shared_value = nn.Linear(shape.key_width, groups_v * shape.value_dim, bias=shape.biases.value)
        if not self.spec.has_embeddings:
            return
        self.query_embedding = nn.Parameter(torch.empty(shape.heads, shape.head_dim))
        self.key_embedding = nn.Parameter(torch.empty(shape.heads, shape.head_dim))
        self.value_embedding = nn.Parameter(torch.empty(shape.heads, shape.value_dim))

    def init_weights(self) -> None:
        if not self.spec.has_embeddings:
            return
        std = float(getattr(self.config, "initializer_range", getattr(self.config, "init_std", 0.02)))
        for embedding in (self.query_embedding, self.key_embedding, self.value_embedding):
            init.normal_(embedding, mean=0.0, std=std)

    @property
    def _multiplies(self) -> bool:
        return self.spec.variant == "mul"

    @property
    def _adds(self) -> bool:
        return self.spec.variant == "add"

    @property
    def _drops_weights(self) -> bool:
        return self.training and self.attention_dropout > 0

    def project_query(self, hidden_states: Tensor) -> Tensor:
        groups = self.spec.query_groups
        if self.spec.own_queries:
            return _by_head(self.own_query(hidden_states), self.shape.heads)
        # (batch, groups, 1, target, head_dim), then every head of a group its own
        shared = self.shared_query(hidden_states).unflatten(-1, (groups, -1)).transpose(1, 2)[:, :, None]
        if self._multiplies:
            inertia = self.inertia_of("query")
            own = (1 + self.query_embedding / inertia) * (1 + self.key_embedding / inertia)
            query = shared * own.unflatten(0, (groups, -1))[:, :, None]
        elif self._adds:
            query = shared + self.query_embedding.unflatten(0, (groups, -1))[:, :, None]
        else:
            query = shared.expand(-1, -1, self.shape.heads // groups, -1, -1)
        return query.flatten(1, 2)

    def project_memory(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        key, value = self.shared_key(memory), self.shared_value(memory)
        if self.spec.own_queries:
            return _by_head(key, self.spec.groups_qk), _by_head(value, self.spec.groups_v)
        return key[:, None], value[:, None]

    def pack_memory(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        if not self.spec.own_queries:
            return key, value
        held = min(self.spec.groups_qk, self.spec.groups_v)
        return _joined(key, held), _joined(value, held)

    def unpack_memory(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        groups_qk, groups_v = self.spec.groups_qk, self.spec.groups_v
        if self.spec.own_queries:
            return _apart(key, groups_qk), _apart(value, groups_v), None
        key = key.squeeze(1).unflatten(-1, (groups_qk, -1)).transpose(1, 2)
        value = value.squeeze(1).unflatten(-1, (groups_v, -1)).transpose(1, 2)
        if self._adds and self._drops_weights:
            value = torch.cat([value, value.new_ones(*value.shape[:-1], 1)], -1)
        return key, value, None

    def row_term(self, query: Tensor) -> Tensor | None:
        if not self._adds or not torch.is_grad_enabled() or not self.key_embedding.requires_grad:
            return None
        return self.score_scaling * (query @ self.key_embedding[..., None])

    def finish_context(self, context: Tensor) -> Tensor:
        if self.spec.own_queries:
            return context
        inertia = self.inertia_of("value")
        if not self.spec.has_embeddings:
            return context / inertia
        embedding = self.value_embedding[:, None]
        if self._multiplies:
            return context * ((1 + embedding / inertia) / inertia)
        if self._drops_weights:
            return (context[..., :-1] + context[..., -1:] * embedding) / inertia
        return (context + embedding) / inertia

    def to_dense(self, output: nn.Linear) -> DenseAttention:
        shape = self.shape
        if self.spec.own_queries:
            return self._grouped(output)
        found: dict[str, Any] = {}
        for name, groups in self._groups.items():
            shared: nn.Linear = getattr(self, f"shared_{name}")
            inertia = self.inertia_of(name)
            weight = split_heads(shared.weight.detach(), groups) / inertia
            bias = weight.new_zeros(groups, weight.shape[-1]) if shared.bias is None else shared.bias.detach() / inertia
            weight, bias = (one.repeat_interleave(shape.heads // groups, 0) for one in (weight, bias.view(groups, -1)))
            if self.spec.variant != "none":
                embedding = getattr(self, f"{name}_embedding").detach() / inertia
                if self._multiplies:
                    weight, bias = weight * (1 + embedding[:, None]), bias * (1 + embedding)
                else:
                    bias = bias + embedding
            found |= {name: weight, f"{name}_bias": bias}
        found["content_bias"] = found["key"].new_zeros(shape.heads, shape.key_width)
        return DenseAttention(**found, scale=self.scaling, biases=shape.biases, **read_output(output, shape.heads))

    def _grouped(self, output: nn.Linear) -> DenseAttention:
        """`to_dense` of heads with queries of their own."""
        shape, heads = self.shape, self.shape.heads
        found: dict[str, Any] = {}
        for name, groups, linear in (
            ("query", heads, self.own_query),
            ("key", self.spec.groups_qk, self.shared_key),
            ("value", self.spec.groups_v, self.shared_value),
        ):
            one = Projection.of(linear)
            weight, bias = split_heads(one.weight.detach(), groups), one.filled_bias().detach().view(groups, -1)
            found[name], found[f"{name}_bias"] = (part.repeat_interleave(heads // groups, 0) for part in (weight, bias))
        found["content_bias"] = found["key"].new_zeros(heads, shape.key_width)
        shared = None if shape.kv_heads is None else even_groups(heads, shape.kv_heads)
        more: dict[str, Any] = {"shared": shared, "turned": shape.turned, "normed": shape.normed}
        return DenseAttention(**found, scale=self.scaling, biases=shape.biases, **more, **read_output(output, heads))


def _by_head(states: Tensor, heads: int) -> Tensor:
    """(batch, length, heads * width) to (batch, heads, length, width)."""
    return states.unflatten(-1, (heads, -1)).transpose(1, 2)


def _joined(states: Tensor, heads: int) -> Tensor:
    """(batch, n, length, width) to (batch, heads, length, n / heads * width), neighbours beside one another."""
    if states.shape[1] == heads:
        return states
    return states.unflatten(1, (heads, -1)).transpose(2, 3).flatten(3)


def _apart(states: Tensor, count: int) -> Tensor:
    """What `_joined` made of `count` heads."""
    if states.shape[1] == count:
        return states
    each = count // states.shape[1]
    return states.unflatten(3, (each, -1)).transpose(2, 3).flatten(1, 2)
