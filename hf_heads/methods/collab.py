"""Collaborative heads: one key/query space for all heads, mixed per head (arXiv 2006.16362)."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from hf_heads.core.decompositions import DAMPING, SharedFactors, cp, squared_norm, tucker
from hf_heads.core.dense import DenseAttention
from hf_heads.core.errors import HeadsError
from hf_heads.core.gauge import INERTIA, gauge
from hf_heads.core.statistics import BlockStatistics
from hf_heads.core.whitening import content_bias, whitened_factors
from hf_heads.methods.attention.collab import CollabAttention
from hf_heads.methods.base import Converted
from hf_heads.methods.settings.collab import ABOUT, CollabSpec, ResolvedCollab


def from_dense(dense: DenseAttention, statistics: BlockStatistics, spec: ResolvedCollab) -> Converted:
    """Shared factors, mixing and content bias of a block, from its weights and what the data says about its inputs.

    Raises:
        HeadsError: settings that are about training from scratch.
    """
    if spec.start is not None or not spec.has_content_bias:
        name = "content_bias" if spec.start is None else "start"
        raise HeadsError(f"{name} is for collab from scratch, and a conversion starts from weights: leave it out")
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
    made = weights_from_factors(dense, statistics, unwhitened)
    inertia = spec.inertia or INERTIA
    for name in ("shared_query.weight", "shared_key.weight", "mixing"):
        made[name] = made[name] * inertia
    return Converted(made, factors.error, dataclasses.replace(spec, inertia=inertia))


def _with_exact_heads(query: Tensor, key: Tensor, rank: int, exact: tuple[int, ...]) -> SharedFactors:
    """CP whose first columns are the factors of some heads; the others share the rest, and may use these."""
    heads, _, head_dim = query.shape
    others = [head for head in range(heads) if head not in exact]
    own = [factor[list(exact)].transpose(0, 1).flatten(1) for factor in (query, key)]
    balance = (own[1].norm(dim=0) / own[0].norm(dim=0).clamp_min(1e-150)).sqrt().clamp_min(1e-150)
    u, v, damping = own[0] * balance, own[1] / balance, 1e-10
    if others:
        rest = cp(query[others], key[others], rank - u.shape[1])
        damping += min(DAMPING, rest.error**2)
        u, v = torch.cat([u, rest.query], 1), torch.cat([v, rest.key], 1)
    # The best mixing for given columns: m_h = [(U^T U) o (V^T V)]^-1 diag(U^T A_h B_h^T V), damped as CP is.
    gram = (u.T @ u) * (v.T @ v)
    wanted = torch.einsum("wr,hwd,hvd,vr->hr", u, query, key, v)
    ridge = damping * gram.diagonal().clamp_min(1e-6 * float(gram.diagonal().mean()))
    mixing = torch.linalg.solve(gram + ridge.diag(), wanted.T).T
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
