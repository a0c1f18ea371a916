"""Pretrained heads to a mixture of Gaussian keys: the exact start, and heads merged into one (arXiv 2110.08678)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from hf_heads.core.decompositions import shared_basis
from hf_heads.core.dense import DenseAttention, merge_heads, split_heads
from hf_heads.core.errors import HeadsError
from hf_heads.core.gauge import balance, reach, rms
from hf_heads.core.grouping import balanced_groups
from hf_heads.core.statistics import BlockStatistics
from hf_heads.core.whitening import score_factors
from hf_heads.methods.base import Converted
from hf_heads.methods.settings.mgk import ResolvedMgk


def from_dense(dense: DenseAttention, statistics: BlockStatistics, spec: ResolvedMgk) -> Converted:
    """The exact start: beta 0, equal priors, components that start as the host's key; or heads merged into one."""
    if spec.heads * spec.merge != dense.shape.heads:
        raise HeadsError(f"{spec.heads} heads cannot be made of {dense.shape.heads}: give merge")
    constants: dict[str, Tensor] = {}
    if spec.learns_sigma:
        constants["log_precision"] = torch.zeros(spec.heads)
        constants["norm_coefficient"] = torch.full((spec.heads,), float(spec.norm or 0))
    if spec.priors == "learned":
        constants["prior_logits"] = torch.zeros(spec.heads, *spec.prior_shape)
    elif spec.priors == "em":
        constants["running_prior"] = torch.full((spec.heads, *spec.prior_shape), 1 / spec.components)
    if spec.merge == 1:
        return Converted({**constants, **_unmerged(dense, spec)}, 0.0 if _exact(spec) else None)
    weights, error, order = _merged(dense, statistics, spec)
    if spec.queries == "shared" and spec.learns_sigma:
        constants["norm_coefficient"] = constants["norm_coefficient"] * _balance(dense, statistics, spec, weights) ** 2
    return Converted({**constants, **weights}, error, dataclasses.replace(spec, order=tuple(order)))


def _shift(spec: ResolvedMgk) -> float:
    """The size of what tells the components apart at the start."""
    default = 0.5 if spec.mixture == "smgk" else 0.01
    return (default if spec.shift is None else spec.shift) if spec.components > 1 else 0.0


def _exact(spec: ResolvedMgk) -> bool:
    """Whether the attention starts as the host's: shifts drop out of the softmax as long as beta is 0."""
    return spec.learns_sigma and not spec.norm and (spec.mixture == "smgk" or not _shift(spec))


def _unmerged(dense: DenseAttention, spec: ResolvedMgk) -> dict[str, Tensor]:
    """The host's own projections; components differ by small amounts that cancel to first order in the attention."""
    if dense.content_bias.any():
        raise HeadsError("this block's scores have a content bias, which a mixture of keys has no place for")
    weights = {
        "component_query.weight": merge_heads(dense.query),
        "component_query.bias": dense.query_bias.flatten(),
        "component_value.weight": merge_heads(dense.value),
        "component_value.bias": dense.value_bias.flatten(),
        "output.weight": dense.output.flatten(0, 1).T,
        "output.bias": dense.output_bias,
    }
    heads, _, head_dim = dense.key.shape
    offsets = _offsets(spec.components, heads, head_dim) * _shift(spec)
    if spec.mixture == "smgk":
        size = dense.key.double().square().sum(1).mean().sqrt().cpu()
        weights["component_key.weight"] = merge_heads(dense.key)
        weights["component_key.bias"] = dense.key_bias.flatten()
        weights["shifts"] = offsets.transpose(0, 1) * size
        return weights
    key = dense.key.cpu()[:, None] * (1 + offsets.transpose(0, 1)[:, :, None])  # (heads, components, width, head_dim)
    bias = dense.key_bias.cpu()[:, None] * (1 + offsets.transpose(0, 1))
    weights["component_key.weight"] = merge_heads(key.flatten(0, 1).to(dense.key.dtype))
    weights["component_key.bias"] = bias.flatten()
    return weights


def _offsets(components: int, heads: int, head_dim: int) -> Tensor:
    """Fixed numbers of size about one whose sum over the components is zero, (components, heads, head_dim)."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(components, heads, head_dim, generator=generator, dtype=torch.float64)
    return drawn - drawn.mean(0)


def match_heads(dense: DenseAttention, statistics: BlockStatistics, size: int) -> list[list[int]]:
    """Groups of heads whose attention is most alike on the calibration data; by their scores without any."""
    gram = statistics.attention_gram
    if gram is None:
        query, key, *_ = score_factors(dense, statistics)
        scores = (query @ key.mT).flatten(1)
        gram = torch.nn.functional.normalize(scores, dim=-1)
        gram = gram @ gram.T
    items = [[head] for head in range(dense.shape.heads)]
    return balanced_groups(items, len(items) // size, partial(_likeness, gram))


def _likeness(gram: Tensor, group: Sequence[int]) -> float:
    return float(gram[list(group)][:, list(group)].sum() - gram[list(group), list(group)].sum())


def _merged(
    dense: DenseAttention, statistics: BlockStatistics, spec: ResolvedMgk
) -> tuple[dict[str, Tensor], float, list[int]]:
    """Merged heads: tensors, the relative error of what had to be shared, the host's heads by place."""
    if dense.content_bias.any():
        raise HeadsError("this block's scores have a content bias, which a mixture of keys has no place for")
    groups = match_heads(dense, statistics, spec.merge)
    order = [head for group in groups for head in group]
    double = dense.double()
    query, query_bias, key, key_bias, value, value_bias, output = (
        getattr(double, name).cpu()[order]
        for name in ("query", "query_bias", "key", "key_bias", "value", "value_bias", "output")
    )
    output_bias, errors = double.output_bias.cpu(), []
    if spec.queries == "shared":
        query, query_bias, key, error = _shared_queries(double, statistics, groups)
        key_bias, priors = torch.zeros_like(key_bias), torch.zeros(len(order), dtype=torch.float64)
        errors.append(error)
    else:
        key_bias, priors = _balancing_bias(statistics, order, query, query_bias, dense.scale)
    if (energies := statistics.head_weights) is not None:
        # sum_h m_h |p_h - p|^2, m_h what head h can move the output by, is least at p = sum_h m_h p_h / sum_h m_h.
        priors = priors + 2 * energies[order].log()
    if spec.values == "shared":
        value, output, change, error = _shared_values(double, statistics, groups)
        value_bias, output_bias = torch.zeros(len(groups), value.shape[-1]), output_bias + change
        errors.append(error)
    weights = {
        "component_query.weight": merge_heads(query),
        "component_query.bias": query_bias.flatten(),
        "component_key.weight": merge_heads(key),
        "component_key.bias": key_bias.flatten(),
        "component_value.weight": merge_heads(value),
        "component_value.bias": value_bias.flatten(),
        "output.weight": output.flatten(0, 1).T,
        "output.bias": output_bias,
    }
    priors = priors.view(len(groups), -1)
    priors = priors - priors.mean(1, keepdim=True)
    if spec.positions is not None:
        priors = priors[..., None].expand(-1, -1, spec.positions)
    if spec.priors == "learned":
        weights["prior_logits"] = priors
    elif spec.priors == "em":
        weights["running_prior"] = priors.softmax(1)
    # Even with exact scores the attention of merged heads is a compromise, which the refit is told by this.
    gram = statistics.attention_gram
    if gram is not None:
        apart = sum(float((gram[h, h] + gram[g, g]) / 2 - gram[h, g]) for group in groups for h in group for g in group)
        errors.append((max(apart, 0.0) / spec.merge / max(float(gram.trace()), 1e-300)) ** 0.5)
    squares = torch.tensor(errors or [1.0], dtype=torch.float64).square()
    return weights, float(squares.mean().sqrt()), order


def _balance(
    dense: DenseAttention, statistics: BlockStatistics, spec: ResolvedMgk, weights: dict[str, Tensor]
) -> float:
    """Scale shared queries, and keys by the inverse, so that steps of training go equally far on both sides.

    Changes `weights`; returns what queries were multiplied by. The coefficient of the keys' norms takes its square.
    """
    query, query_bias = split_heads(weights["component_query.weight"], spec.heads), weights["component_query.bias"]
    by_key = rms(query, statistics.query, query_bias.view(spec.heads, -1)).sum(-1).mean()
    key = split_heads(weights["component_key.weight"], spec.heads * spec.merge)
    factor = balance(rms(key, statistics.key).sum(-1).mean(), by_key, reach(dense, statistics))
    for side, by in (("query", factor), ("key", 1 / factor)):
        for leaf in ("weight", "bias"):
            weights[f"component_{side}.{leaf}"] = weights[f"component_{side}.{leaf}"] * by
    return float(factor)


def _balancing_bias(
    statistics: BlockStatistics, order: Sequence[int], query: Tensor, query_bias: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Key biases and log priors (heads,) that give every head of a group about the same say in the merged attention.

    Softmax's denominators differ from head to head and from query to query. What of their logarithm is linear in the
    query is taken back by the key's bias, which a head of its own would not feel, and its mean by the prior.
    """
    priors = torch.zeros(len(order), dtype=torch.float64)
    if statistics.log_sums is None or statistics.log_sum_cross is None:
        return torch.zeros_like(query_bias), priors
    covariance = statistics.query.covariance
    inner = query.mT @ covariance @ query  # (heads, head_dim, head_dim)
    ridge = 1e-3 * inner.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-12)
    inner = inner + ridge[:, None, None] * torch.eye(inner.shape[-1], dtype=torch.float64)
    wanted = -torch.einsum("hdw,dh->hw", query, statistics.log_sum_cross[:, list(order)])
    bias = torch.linalg.solve(inner, wanted)
    mean = torch.einsum("d,hdw->hw", statistics.query.mean, query) + query_bias
    priors = -statistics.log_sums[list(order)] - (mean * bias).sum(-1)
    return bias / scale, priors


def _shared_queries(
    dense: DenseAttention, statistics: BlockStatistics, groups: Sequence[Sequence[int]]
) -> tuple[Tensor, Tensor, Tensor, float]:
    """One query for the heads of each group, the best for all their scores; biases included.

    Returns:
        Queries (groups, query_width, head_dim), their biases, keys (heads, key_width, head_dim), relative error.
    """
    width = dense.query.shape[2]
    query, key, query_inverse, key_inverse, _ = score_factors(dense, statistics)
    if (weights := statistics.head_weights) is not None:
        query = query * weights[:, None, None]
    queries, keys, lost, norm = [], [], 0.0, 0.0
    for group in groups:
        scores = query[list(group)] @ key[list(group)].mT  # (heads, query_width + 1, key_width)
        left, values, right = torch.linalg.svd(torch.cat(list(scores), -1), full_matrices=False)
        roots = values[:width].sqrt()
        queries.append(query_inverse @ (left[:, :width] * roots) / dense.scale)
        own = (right[:width] * roots[:, None]).unflatten(1, (len(group), -1)).permute(1, 2, 0)
        if weights is not None:
            own = own / weights[list(group)][:, None, None]
        keys.append(key_inverse @ own)
        lost, norm = lost + float(values[width:].square().sum()), norm + float(values.square().sum())
    found = torch.stack(queries)
    return found[:, :-1], found[:, -1], torch.cat(keys), (lost / max(norm, 1e-300)) ** 0.5


def _shared_values(
    dense: DenseAttention, statistics: BlockStatistics, groups: Sequence[Sequence[int]]
) -> tuple[Tensor, Tensor, Tensor, float]:
    """One head's width of values for each group, as for head embeddings.

    Returns:
        Values (groups, key_width, value_dim), output maps (groups, value_dim, output_width), what the output's bias
        gains (output_width,), relative error.
    """
    root, inverse = statistics.key.square_root(centred=dense.biases.output)
    value, output = dense.value.cpu(), dense.output.cpu()
    values, outputs, squares = [], [], []
    for group in groups:
        # Merged heads have one attention, so that only the sum of their maps counts.
        maps = (root @ value[list(group)] @ output[list(group)]).sum(0)
        basis, error = shared_basis(maps[None], value.shape[2])
        values.append(inverse @ basis)
        outputs.append(basis.T @ maps)
        squares.append(error**2)
    found, new = torch.stack(values), torch.stack(outputs)
    mean = statistics.key.mean
    before = torch.einsum("d,hde,hew->w", mean, value, output) + torch.einsum(
        "he,hew->w", dense.value_bias.cpu(), output
    )
    change = before - torch.einsum("d,hde,hew->w", mean, found, new)
    if not dense.biases.output:  # the mean is kept as well as all else instead
        change = torch.zeros_like(change)
    return found, new, change, (sum(squares) / len(squares)) ** 0.5
