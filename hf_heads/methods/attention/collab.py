"""The forward of collaborative heads: one key/query space for all, mixed per head (arXiv 2006.16362)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import initialization as init

from hf_heads.attention.hosts.reading import read_value_output
from hf_heads.attention.kernels import shared_scores
from hf_heads.attention.module import HeadsAttention
from hf_heads.core.dense import AttentionShape, DenseAttention

if TYPE_CHECKING:
    from hf_heads.methods.settings.collab import ResolvedCollab


class CollabAttention(HeadsAttention):
    """Attention over one shared key per position; queries are the shared query, reweighted for each head."""

    spec: ResolvedCollab

    @property
    def shared(self) -> tuple[str, ...]:
        return ("shared_query", "shared_key", "mixing")

    @property
    def inertia(self) -> int:
        return self.spec.inertia or 1

    @property
    def score_scaling(self) -> float:
        return self.scaling / self.inertia**3  # one for each of query, key and mixing

    def build(self, shape: AttentionShape) -> None:
        rank, heads = self.spec.rank, shape.heads
        self.shared_query = nn.Linear(shape.query_width, rank, bias=False)
        self.shared_key = nn.Linear(shape.key_width, rank, bias=False)
        self.content_bias = nn.Linear(shape.key_width, heads, bias=False) if self.spec.has_content_bias else None
        self.mixing = nn.Parameter(torch.empty((heads, rank) if self.spec.form == "cp" else (heads, rank, rank)))

    def init_weights(self) -> None:
        if self.spec.start == "concatenate":
            init.copy_(self.mixing, self._separate_heads())
            return
        rank = self.mixing.shape[-1]
        terms = rank if self.spec.form == "cp" else rank**2
        # Without another wish, scores start with the variance that heads of width head_dim would give.
        even = (self.shape.head_dim / terms) ** 0.5
        init.normal_(self.mixing, mean=0.0, std=0.2 if self.spec.start == "uniform" else even)

    def init_projections(self) -> None:
        # The content bias stands for the queries' biases, which start at zero.
        if self.content_bias is not None:
            init.zeros_(self.content_bias.weight)

    def _separate_heads(self) -> Tensor:
        """A mixing that gives every head columns of the shared space for itself, the last ones perhaps fewer."""
        heads, rank = self.mixing.shape[:2]
        each = math.ceil(rank / heads)
        owner = torch.arange(rank, device=self.mixing.device) // each
        own = (owner == torch.arange(heads, device=self.mixing.device)[:, None]).to(self.mixing)
        return own if self.spec.form == "cp" else own.diag_embed()

    def project_query(self, hidden_states: Tensor) -> Tensor:
        # (batch, 1, target, rank): the shared query, then reweighted for each head
        shared = self.shared_query(hidden_states)[:, None]
        return shared * self.mixing[:, None] if self.spec.form == "cp" else shared @ self.mixing

    def project_memory(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        key = self.shared_key(memory)
        if self.content_bias is not None:
            key = torch.cat([key, self.content_bias(memory)], -1)
        return key[:, None], self.value_projection(memory)[:, None]

    def unpack_memory(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        heads = self.shape.heads
        value = value.squeeze(1).unflatten(-1, (heads, -1)).transpose(1, 2)
        if self.content_bias is None:
            return key, value, None
        shared, bias = key[..., :-heads], key[..., -heads:]
        return shared, value, bias.transpose(1, 3).squeeze(-1)[:, :, None]

    def scores(self, hidden_states: Tensor, memory: Tensor) -> Tensor:
        key, content = self.shared_key(memory)[:, None], None
        if self.content_bias is not None:
            content = self.content_bias(memory).mT[:, :, None]
        return shared_scores(self.project_query(hidden_states), key, self.score_scaling, content)

    def fixed(self, name: str) -> Tensor | None:
        exact = list(self.spec.exact or ())
        if not exact:
            return None
        parameter = self.get_parameter(name)
        fixed = torch.zeros_like(parameter, dtype=torch.bool)
        if name in ("mixing", "content_bias.weight"):
            fixed[exact] = True
        else:
            fixed[: len(exact) * self.shape.head_dim] = True
        return fixed

    def to_dense(self, output: nn.Linear) -> DenseAttention:
        mixing = self.mixing.detach()
        heads, rank = mixing.shape[:2]
        shared = self.shared_query.weight.detach().T / self.inertia**2
        zeros, bias = shared.new_zeros(heads, rank), self.content_bias
        return DenseAttention(
            query=shared * mixing[:, None] if self.spec.form == "cp" else shared @ mixing,
            key=(self.shared_key.weight.detach().T / self.inertia).expand(heads, -1, -1),
            query_bias=zeros,
            key_bias=zeros,
            content_bias=shared.new_zeros(heads, self.shape.key_width) if bias is None else bias.weight.detach(),
            scale=self.scaling,
            biases=self.shape.biases,
            **read_value_output(self.value_projection, output, heads),
        )
