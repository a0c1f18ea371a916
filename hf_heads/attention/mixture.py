"""Attention over several keys per position, always in log space: softmax, its hard form, and the linear form.

Shapes in all three: query (batch, heads, 1 or components, target, head_dim), one for all components or one each; key
(batch, heads, components, source, head_dim); value (batch, heads, source, value_dim). All return the context (batch,
heads, target, value_dim) and, for `eager`, the weights (batch, heads, target, source), summed over components, rows
summing to one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from hf_heads.attention.kernels import Conditions, exporting, lower_triangle

_MANY_KEYS = 64  # keys; for fewer, making the scores at once is faster than the fused kernel


def centred(query: Tensor, key: Tensor, coefficient: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys with the same attention, keys centred: large common parts would cost digits of the scores.

    With k = c + k', q k - beta |k|^2 / 2 is (q - beta c) k' - beta |k'|^2 / 2 and what is the same for all keys. One
    query must serve all components.

    Args:
        coefficient: beta, (heads,).
    """
    centre = key.mean((2, 3), keepdim=True)
    return query - coefficient[:, None, None, None].to(query.dtype) * centre, key - centre


def mixture_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float,
    additive: Tensor,
    conditions: Conditions,
    watch: Callable[[Tensor], None] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """softmax over all components of all positions of scaling * q k + additive.

    Args:
        additive: (batch or 1, heads, components, source) in float32: log priors and the keys' norms.
        watch: is given the weights by component, (batch, heads, target, components, source).
    """
    long = exporting() or key.shape[-2] >= _MANY_KEYS  # an exported program serves any length
    if not conditions.eager and watch is None and not conditions.dropout and query.shape[2] == 1 and long:
        return _fused_mixture(query[:, :, 0], key, value, scaling, additive, conditions), None
    scores = _scores(query, key, scaling, additive, conditions)
    if watch is not None:
        watch(scores.flatten(-2).softmax(-1).view_as(scores))
    return _merge(scores.logsumexp(-2), value, conditions)  # (batch, heads, target, source)


def hard_attention(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, additive: Tensor, conditions: Conditions
) -> tuple[Tensor, Tensor | None]:
    """The same with every position represented by its best component for the query (hard-E)."""
    return _merge(_scores(query, key, scaling, additive, conditions).amax(-2), value, conditions)


def _merge(scores: Tensor, value: Tensor, conditions: Conditions) -> tuple[Tensor, Tensor | None]:
    """Context and weights from scores (batch, heads, target, source)."""
    weights = conditions.drop(scores.softmax(-1).to(value.dtype))
    return weights @ value, conditions.weights(weights)


def linear_attention(
    query: Tensor, key: Tensor, value: Tensor, log_priors: Tensor, conditions: Conditions
) -> tuple[Tensor, Tensor | None]:
    """a_ij ~ phi(q_i) sum_r pi_r phi(k_jr) with phi = elu + 1, in time linear in the source where no mask forbids it.

    Args:
        log_priors: (heads, components).
    """
    features = nn.functional.elu(query[:, :, 0].float()) + 1
    keys = nn.functional.elu(key.float()) + 1
    keys = (keys * log_priors.exp()[:, :, None, None]).sum(2)  # (batch, heads, source, head_dim)
    allowed = _allowed(conditions, query, key.shape[-2])
    if conditions.eager or conditions.dropout or (allowed is not None and allowed.shape[-2] > 1):
        weights = features @ keys.mT
        weights = weights if allowed is None else weights * allowed
        weights = conditions.drop((weights / weights.sum(-1, keepdim=True).clamp_min(1e-20)).to(value.dtype))
        return weights @ value, conditions.weights(weights)
    keys = keys if allowed is None else keys * allowed.mT
    total = features @ keys.sum(-2)[..., None]
    context = features @ (keys.mT @ value.float()) / total.clamp_min(1e-20)
    return context.to(value.dtype), None


def _scores(query: Tensor, key: Tensor, scaling: float, additive: Tensor, conditions: Conditions) -> Tensor:
    """Scores (batch, heads, target, components, source) in float32, or float64 where queries are."""
    scores = (query * scaling) @ key.mT
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) + additive[..., None, :]
    term = conditions.additive(query, key.shape[-2], torch.float32)
    if term is not None:
        scores = scores + _by_component(term, key.shape[1], key.shape[2])
    return scores.transpose(2, 3)


def _fused_mixture(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, additive: Tensor, conditions: Conditions
) -> Tensor:
    """Torch's fused attention over components x source keys, with the additive term in channels of its own.

    In a precision below float32 the term takes two channels, a rounded part and the rest.
    """
    components, source = key.shape[2], key.shape[3]
    term = (additive / scaling).expand(*key.shape[:-1])
    parts = [term.to(key.dtype)]
    if key.dtype not in (torch.float32, torch.float64):
        parts.append((term - parts[0].float()).to(key.dtype))
    key = torch.cat([key, *(part[..., None] for part in parts)], -1).flatten(2, 3)
    query = torch.cat([query, query.new_ones(*query.shape[:-1], len(parts))], -1)
    missing = key.shape[-1] - value.shape[-1]  # fused kernels want equal widths
    wide = nn.functional.pad(value, (0, max(missing, 0)))
    if missing < 0:
        key, query = nn.functional.pad(key, (0, -missing)), nn.functional.pad(query, (0, -missing))
    wide = wide[:, :, None].expand(-1, -1, components, -1, -1).flatten(2, 3)
    allowed = conditions.additive(query, source)
    if allowed is not None:
        allowed = _by_component(allowed.to(query.dtype), key.shape[1], components)
        allowed = allowed.expand(*allowed.shape[:-3], components, *allowed.shape[-2:]).transpose(-3, -2).flatten(-2)
    context = nn.functional.scaled_dot_product_attention(query, key, wide, attn_mask=allowed, scale=scaling)
    return context[..., : value.shape[-1]]


def _by_component(term: Tensor, heads: int, components: int) -> Tensor:
    """A term on the scores, broadcastable to (batch, heads, components, target, source).

    One for every head that was merged (positions may count differently in each) is one for every component.
    """
    if term.ndim == 4 and term.shape[1] not in (1, heads):
        return term.unflatten(1, (heads, components))
    return term[..., None, :, :]


def _allowed(conditions: Conditions, query: Tensor, source: int) -> Tensor | None:
    """The mask as booleans; of a mask whose rows are the same memory, one row."""
    mask = conditions.mask
    if mask is None:
        return lower_triangle(query, source) if conditions.causal and query.shape[-2] > 1 else None
    if mask.dtype != torch.bool:
        mask = mask > torch.finfo(mask.dtype).min / 2
    return mask[..., :1, :] if mask.stride(-2) == 0 else mask
