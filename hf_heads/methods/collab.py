"""Collaborative heads: one key/query space for all heads, mixed per head (arXiv 2006.16362)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import initialization as init

from hf_heads.attention.hosts.reading import read_value_output
from hf_heads.attention.kernels import shared_scores
from hf_heads.attention.module import HeadsAttention
from hf_heads.core.decompositions import SharedFactors, cp, squared_norm, tucker
from hf_heads.core.dense import AttentionShape, DenseAttention
from hf_heads.core.gauge import gauge
from hf_heads.core.statistics import BlockStatistics
from hf_heads.core.whitening import content_bias, whitened_factors
from hf_heads.methods.base import Converted
from hf_heads.methods.settings.collab import ABOUT, CollabSpec, ResolvedCollab


class CollabAttention(HeadsAttention):
    """Attention over one shared key per position; queries are the shared query, reweighted for each head."""

    spec: ResolvedCollab

    @property
    def shared(self) -> tuple[str, ...]:
        return ("shared_query", "shared_key", "mixing")

    def build(self, shape: AttentionShape) -> None:
        rank, heads = self.spec.rank, shape.heads
        self.shared_query = nn.Linear(shape.query_width, rank, bias=False)
        self.shared_key = nn.Linear(shape.key_width, rank, bias=False)
        self.content_bias = nn.Linear(shape.key_width, heads, bias=False)
        self.mixing = nn.Parameter(torch.empty((heads, rank) if self.spec.form == "cp" else (heads, rank, rank)))

    def init_weights(self) -> None:
        # Scores start with the variance that heads of width head_dim would give.
        rank = self.mixing.shape[-1]
        terms = rank if self.spec.form == "cp" else rank**2
        init.normal_(self.mixing, mean=0.0, std=(self.shape.head_dim / terms) ** 0.5)

    def project_query(self, hidden_states: Tensor) -> Tensor:
        # (batch, 1, target, rank): the shared query, then reweighted for each head
        shared = self.shared_query(hidden_states)[:, None]
        return shared * self.mixing[:, None] if self.spec.form == "cp" else shared @ self.mixing

    def project_memory(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        key = torch.cat([self.shared_key(memory), self.content_bias(memory)], -1)
        return key[:, None], self.value_projection(memory)[:, None]

    def unpack_memory(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        heads = self.shape.heads
        value = value.squeeze(1).unflatten(-1, (heads, -1)).transpose(1, 2)
        shared, bias = key[..., :-heads], key[..., -heads:]
        return shared, value, bias.transpose(1, 3).squeeze(-1)[:, :, None]

    def scores(self, hidden_states: Tensor, memory: Tensor) -> Tensor:
        key, content = self.shared_key(memory)[:, None], self.content_bias(memory).mT[:, :, None]
        return shared_scores(self.project_query(hidden_states), key, self.scaling, content)

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
        shared = self.shared_query.weight.detach().T
        zeros = shared.new_zeros(heads, rank)
        return DenseAttention(
            query=shared * mixing[:, None] if self.spec.form == "cp" else shared @ mixing,
            key=self.shared_key.weight.detach().T.expand(heads, -1, -1),
            query_bias=zeros,
            key_bias=zeros,
            content_bias=self.content_bias.weight.detach(),
            scale=self.scaling,
            bias=self.shape.bias,
            **read_value_output(self.value_projection, output, heads),
        )


def from_dense(dense: DenseAttention, statistics: BlockStatistics, spec: ResolvedCollab) -> Converted:
    """Shared factors, mixing and content bias of a block, from its weights and what the data says about its inputs."""
    query, key = whitened_factors(dense, statistics)
    if spec.exact:
        factors = _with_exact_heads(query, key, spec.rank, spec.exact)
    else:
        factors = cp(query, key, spec.rank) if spec.form == "cp" else tucker(query, key, (spec.rank, spec.rank))
    core = factors.core
    if (weights := statistics.head_weights) is not None:
        core = core / weights.view(-1, *[1] * (core.ndim - 1))
    u, core, v = gauge(
        statistics.query.square_root()[1] @ factors.query / dense.scale,
        core,
        statistics.key.square_root()[1] @ factors.key,
        dense,
        statistics,
    )
    unwhitened = SharedFactors(u * dense.scale, core, v, factors.error)
    return Converted(weights_from_factors(dense, statistics, unwhitened), factors.error)


def _with_exact_heads(query: Tensor, key: Tensor, rank: int, exact: tuple[int, ...]) -> SharedFactors:
    """CP whose first columns are the factors of some heads; the others share the rest, and may use these."""
    heads, _, head_dim = query.shape
    others = [head for head in range(heads) if head not in exact]
    own = [factor[list(exact)].transpose(0, 1).flatten(1) for factor in (query, key)]
    balance = (own[1].norm(dim=0) / own[0].norm(dim=0).clamp_min(1e-150)).sqrt().clamp_min(1e-150)
    u, v = own[0] * balance, own[1] / balance
    if others:
        rest = cp(query[others], key[others], rank - u.shape[1])
        u, v = torch.cat([u, rest.query], 1), torch.cat([v, rest.key], 1)
    # The best mixing for given columns: m_h = [(U^T U) o (V^T V)]^-1 diag(U^T A_h B_h^T V).
    gram = (u.T @ u) * (v.T @ v)
    wanted = torch.einsum("wr,hwd,hvd,vr->hr", u, query, key, v)
    ridge = 1e-10 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    mixing = torch.linalg.solve(gram + ridge, wanted.T).T
    for place, head in enumerate(exact):
        mixing[head] = 0.0
        mixing[head, place * head_dim : (place + 1) * head_dim] = 1.0
    norm = squared_norm(query, key)
    lost = norm - 2 * (mixing * wanted).sum() + ((mixing @ gram) * mixing).sum()
    return SharedFactors(u, mixing, v, float((lost.clamp_min(0) / norm.clamp_min(1e-300)).sqrt()))


def weights_from_factors(
    dense: DenseAttention, statistics: BlockStatistics, factors: SharedFactors
) -> dict[str, Tensor]:
    """The module's tensors from factors of scale * W_Q,h W_K,h^T; the content bias absorbs their error on average."""
    mean = statistics.query.mean.to(factors.query) @ factors.query
    approximated = (factors.core * mean if factors.core.ndim == 2 else mean @ factors.core) @ factors.key.T
    return {
        "shared_query.weight": factors.query.T / dense.scale,  # the host's scale is applied to the scores once more
        "shared_key.weight": factors.key.T,
        "content_bias.weight": content_bias(dense, statistics, approximated),
        "mixing": factors.core,
    }


METHOD = ABOUT.method(
    CollabAttention, from_dense, ("shared_query.weight", "shared_key.weight", "mixing", "content_bias.weight")
)

__all__ = ["METHOD", "CollabAttention", "CollabSpec", "from_dense", "weights_from_factors"]
