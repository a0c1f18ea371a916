"""The forward of pruned heads: standard attention with fewer of them (arXiv 1905.10650)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from hf_heads.attention.hosts.reading import Projection, even_groups, read_projections
from hf_heads.attention.module import HeadsAttention
from hf_heads.core.dense import AttentionShape, DenseAttention

if TYPE_CHECKING:
    from hf_heads.methods.settings.pruned import ResolvedPruned


class PrunedAttention(HeadsAttention):
    """Standard attention with fewer heads, under the host's own names; without heads there are no projections."""

    replaces: ClassVar[tuple[str, ...]] = ("query", "key", "value")
    spec: ResolvedPruned

    def build(self, shape: AttentionShape) -> None:
        site, heads = self.site, shape.heads
        if heads:
            biases = shape.biases
            self.add_module(site.query, nn.Linear(shape.query_width, heads * shape.head_dim, bias=biases.query))
            read = shape.memory_heads
            self.add_module(site.key, nn.Linear(shape.key_width, read * shape.head_dim, bias=biases.key))
            self.add_module(site.value, nn.Linear(shape.key_width, read * shape.value_dim, bias=biases.value))

    def _heads(self, name: str, inputs: Tensor, heads: int) -> Tensor:
        return getattr(self, name)(inputs).unflatten(-1, (heads, -1)).transpose(1, 2)

    def project_query(self, hidden_states: Tensor) -> Tensor:
        return self._heads(self.site.query, hidden_states, self.shape.heads)

    def project_memory(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        heads = self.shape.memory_heads
        return self._heads(self.site.key, memory, heads), self._heads(self.site.value, memory, heads)

    def unpack_memory(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        shared = self.spec.shared
        if shared is not None and (len(shared) % key.shape[1] or shared != even_groups(len(shared), key.shape[1])):
            # Groups of equal size need no copies: the kernels share what neighbours read.
            read = torch.tensor(shared, device=key.device)
            key, value = key.index_select(1, read), value.index_select(1, read)
        return key, value, None

    def to_dense(self, output: nn.Linear) -> DenseAttention:
        if self.shape.heads:
            names = self.site.query, self.site.key, self.site.value
            query, key, value = (Projection.of(getattr(self, name)) for name in names)
            return read_projections((query, key, value), output, self.shape, self.scaling, self.spec.shared)
        return DenseAttention.empty(self.shape, Projection.of(output).filled_bias().detach(), self.scaling)
