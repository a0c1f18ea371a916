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
    added to the context, times what attention dropout has left of the weights' sum. none: there are no embeddings; with
    queries of each head's own that is grouped-query attention.
    """

    replaces: ClassVar[tuple[str, ...]] = ("query", "key", "value")
    spec: ResolvedMhe

    @property
    def shared(self) -> tuple[str, ...]:
        if self.spec.is_grouped and self.spec.inertia is None:
            return ()  # trained as models with grouped queries always are
        of = [side for side, groups in self._groups.items() if groups < self.shape.heads]
        embeddings = () if not self.spec.has_embeddings else tuple(f"{side}_embedding" for side in of)
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
    def shared_values(self) -> tuple[str, int] | None:
        return ("shared_value", self.inertia_of("value")) if self.spec.groups_v < self.shape.heads else None

    @property
    def score_scaling(self) -> float:
        return self.scaling / (self.inertia_of("query") * self.inertia_of("key"))

    def build(self, shape: AttentionShape) -> None:
        groups_q, groups_qk, groups_v = self._groups.values()
        query = nn.Linear(shape.query_width, groups_q * shape.head_dim, bias=shape.biases.query)
        self.add_module("own_query" if self.spec.own_queries else "shared_query", query)
        if self.spec.memory != "el":
            self.shared_key = nn.Linear(shape.key_width, groups_qk * shape.head_dim, bias=shape.biases.key)
        if self.spec.memory is not None:
            return
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
        # (batch, groups, 1, target, head_dim), then every head of a group its own
        shared = _by_head(self._projection("query")(hidden_states), groups)[:, :, None]
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
        if self.spec.memory is not None:
            key = _by_head(memory if self.spec.memory == "el" else self.shared_key(memory), self.shape.heads)
            return key, key
        key, value = self.shared_key(memory), self.shared_value(memory)
        return _by_head(key, self.spec.groups_qk), _by_head(value, self.spec.groups_v)

    def pack_memory(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        if self.spec.memory is not None:
            return key, value[..., :0]  # a cache holds them once
        held = min(self.spec.groups_qk, self.spec.groups_v)
        return _joined(key, held), _joined(value, held)

    def unpack_memory(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        if self.spec.memory is not None:
            return key, key, None
        key, value = _apart(key, self.spec.groups_qk), _apart(value, self.spec.groups_v)
        if self._adds and self._drops_weights:
            value = torch.cat([value, value.new_ones(*value.shape[:-1], 1)], -1)
        return key, value, None

    def row_term(self, query: Tensor) -> Tensor | None:
        if not self._adds or not torch.is_grad_enabled() or not self.key_embedding.requires_grad:
            return None
        return self.score_scaling * (query @ self.key_embedding[..., None])

    def finish_context(self, context: Tensor) -> Tensor:
        inertia = self.inertia_of("value")
        if not self.spec.has_embeddings:
            return context if inertia == 1 else context / inertia
        embedding = self.value_embedding[:, None]
        if self._multiplies:
            return context * ((1 + embedding / inertia) / inertia)
        if self._drops_weights:
            return (context[..., :-1] + context[..., -1:] * embedding) / inertia
        return (context + embedding) / inertia

    def _projection(self, side: str) -> nn.Linear:
        """What makes a side's heads: `query`, `key` or `value`."""
        return getattr(self, "own_query" if side == "query" and self.spec.own_queries else f"shared_{side}")

    def _weights(self, side: str) -> Projection:
        """Weights and biases that make a side's heads, whatever makes them."""
        if self.spec.memory == "el" and side != "query":
            return Projection(torch.eye(self.shape.key_width).to(self._projection("query").weight.detach()), None)
        side = "key" if self.spec.memory is not None and side == "value" else side
        return Projection.of(self._projection(side))

    def to_dense(self, output: nn.Linear) -> DenseAttention:
        shape, heads = self.shape, self.shape.heads
        found: dict[str, Any] = {}
        for name, groups in self._groups.items():
            shared, inertia = self._weights(name), self.inertia_of(name)
            weight = split_heads(shared.weight.detach(), groups) / inertia
            bias = shared.filled_bias().detach().view(groups, -1) / inertia
            weight, bias = (one.repeat_interleave(heads // groups, 0) for one in (weight, bias))
            if self.spec.has_embeddings:
                embedding = getattr(self, f"{name}_embedding").detach() / inertia
                if self._multiplies:
                    weight, bias = weight * (1 + embedding[:, None]), bias * (1 + embedding)
                else:
                    bias = bias + embedding
            found |= {name: weight, f"{name}_bias": bias}
        found["content_bias"] = found["key"].new_zeros(heads, shape.key_width)
        read = None if shape.kv_heads is None else even_groups(heads, shape.kv_heads)
        more: dict[str, Any] = {"shared": read, "turned": shape.turned, "normed": shape.normed}
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
