"""Attention over several keys per position, always in log space: softmax, its hard form, and the linear form.

Shapes in all three: query (batch, heads, 1 or components, target, head_dim), one for all components or one each; key
(batch, heads, components, source, head_dim); value (batch, heads, source, value_dim). All return the context (batch,
heads, target, value_dim) and, for `eager`, the weights (batch, heads, target, source), summed over components, rows
summing to one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hf_heads.attention.kernels import Conditions, exporting, lower_triangle

_MANY_KEYS = 64  # keys; for fewer, making the scores at once is faster than the fused kernel
_SOME_SCORES = 2**20  # made at a time, where there are many
_CHUNK = 64  # positions between which a running sum is brought up to date
_LEAST = 1e-20  # of a sum of weights, which is zero where nothing is seen


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
) -> tuple[Tensor, Tensor | None]:
    """softmax over all components of all positions of scaling * q k + additive.

    Args:
        additive: (batch or 1, heads, components, source) in float32 or float64: log priors and the keys' norms.
    """
    long = exporting() or key.shape[-2] >= _MANY_KEYS  # an exported program serves any length
    if not conditions.eager and not conditions.dropout and query.shape[2] == 1 and long:
        return _fused_mixture(query[:, :, 0], key, value, scaling, additive, conditions), None
    scores = _scores(query, key, scaling, additive, _term(conditions, query, key))
    return _merge(scores.logsumexp(-2), value, conditions)  # (batch, heads, target, source)


def hard_attention(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, additive: Tensor, conditions: Conditions
) -> tuple[Tensor, Tensor | None]:
    """The same with every position represented by its best component for the query (hard-E).

    Where scores would be many they are made for some queries at a time, and once more in the backward pass.
    """
    term = _term(conditions, query, key)

    def some(rows: slice) -> tuple[Tensor, Tensor | None]:
        scores = _scores(query[..., rows, :], key, scaling, additive, _rows(term, rows))
        return _merge(scores.amax(-2), value, conditions)

    pieces = _pieces(query, key)
    if conditions.eager or len(pieces) == 1:
        return some(slice(None))
    if torch.is_grad_enabled():
        return torch.cat([checkpoint(some, rows, use_reentrant=False)[0] for rows in pieces], -2), None
    return torch.cat([some(rows)[0] for rows in pieces], -2), None


@torch.no_grad()
def responsibilities(
    query: Tensor, key: Tensor, scaling: float, additive: Tensor, conditions: Conditions, own: bool
) -> tuple[Tensor, Tensor]:
    """N_jr = sum_i gamma_ijr, with gamma_ijr the share of component r in what position j is to query i, and their sum.

    Queries count where they may see the position. Scores are made for some queries at a time.

    Args:
        scaling, additive: as in `mixture_attention`; the log priors are in the latter.
        own: queries and keys are of the same tokens, so that padding is the same on both sides and does not count.

    Returns:
        N (heads, components, source), and how many queries counted, (heads or 1, source).
    """
    batch, _, _, target, _ = query.shape
    source = key.shape[-2]
    allowed = _allowed(conditions, query, source)
    if allowed is None:
        allowed = torch.ones(1, 1, 1, source, dtype=torch.bool, device=query.device)
    allowed = allowed.view((1,) * (4 - allowed.ndim) + allowed.shape)
    allowed = allowed.expand(batch, -1, target, -1)
    if own:
        allowed = allowed & allowed.diagonal(source - target, -2, -1)[..., None]
    term, total = _term(conditions, query, key), additive.new_zeros(query.shape[1], key.shape[2], source)
    for rows in _pieces(query, key):
        shares = _scores(query[..., rows, :], key, scaling, additive, _rows(term, rows)).softmax(-2)
        total += (shares * allowed[..., rows, None, :]).sum((0, 2))
    return total, allowed.sum((0, 2))


def _merge(scores: Tensor, value: Tensor, conditions: Conditions) -> tuple[Tensor, Tensor | None]:
    """Context and weights from scores (batch, heads, target, source)."""
    weights = conditions.drop(scores.softmax(-1).to(value.dtype))
    return weights @ value, conditions.weights(weights)


def linear_attention(
    query: Tensor, key: Tensor, value: Tensor, log_priors: Tensor, conditions: Conditions
) -> tuple[Tensor, Tensor | None]:
    """a_ij ~ phi(q_i) sum_r pi_r phi(k_jr) with phi = elu + 1, in time linear in the source.

    A causal one sums keys and values up as it goes. Only a mask of another form, or the wish for weights, has it make
    them all. Dropout takes a position away from all queries of a head at once, since single weights do not exist here.

    Args:
        log_priors: (heads, components, source or 1).
    """
    features, keys = _features(query[:, :, 0]), _features(key)
    keys = (keys * log_priors.exp()[..., None]).sum(2)  # (batch, heads, source, head_dim)
    values, kept = value.to(features.dtype), conditions.drop(torch.ones_like(keys[..., :1]))
    if conditions.dropout:
        values = values * kept
    if conditions.mask is None and conditions.causal and query.shape[-2] > 1 and not conditions.eager:
        return _running(features, keys, values, 0).to(value.dtype), None
    allowed = _allowed(conditions, query, key.shape[-2])
    several = allowed is not None and allowed.shape[-2] > 1
    triangle = _triangle(allowed) if allowed is not None and several and not conditions.eager else None
    if triangle is not None:
        row, offset = triangle
        return _running(features, keys * row.mT, values, offset).to(value.dtype), None
    if conditions.eager or several:
        weights = features @ keys.mT
        weights = weights if allowed is None else weights * allowed
        weights = weights / weights.sum(-1, keepdim=True).clamp_min(_LEAST)
        context = (weights @ values).to(value.dtype)
        return context, conditions.weights((weights * kept.mT if conditions.dropout else weights).to(value.dtype))
    keys = keys if allowed is None else keys * allowed.mT
    total = features @ keys.sum(-2)[..., None]
    return (features @ (keys.mT @ values) / total.clamp_min(_LEAST)).to(value.dtype), None


def _features(inputs: Tensor) -> Tensor:
    """elu + 1, in float32 at least."""
    return nn.functional.elu(inputs.to(torch.promote_types(inputs.dtype, torch.float32))) + 1


def _running(features: Tensor, keys: Tensor, values: Tensor, offset: int) -> Tensor:
    """Linear attention where query i sees the first i + 1 + offset keys: what has been seen is one matrix.

    Args:
        features: of queries, (batch, heads, target, head_dim).
        keys: features of keys, zero where nobody sees them, (batch, heads, source, head_dim).
        values: (batch, heads, source, value_dim).
    """
    seen = keys[:, :, :offset].mT @ values[:, :, :offset]  # (batch, heads, head_dim, value_dim)
    total = keys[:, :, :offset].sum(-2)[..., None]  # (batch, heads, head_dim, 1)
    contexts = []
    for begin in range(0, features.shape[-2], _CHUNK):
        query = features[:, :, begin : begin + _CHUNK]
        place = slice(begin + offset, begin + offset + query.shape[-2])
        key, value = keys[:, :, place], values[:, :, place]
        near = (query @ key.mT).tril()  # (batch, heads, chunk, chunk)
        sums = query @ total + near.sum(-1, keepdim=True)
        contexts.append((query @ seen + near @ value) / sums.clamp_min(_LEAST))
        seen, total = seen + key.mT @ value, total + key.sum(-2)[..., None]
    return torch.cat(contexts, -2)


def _triangle(allowed: Tensor) -> tuple[Tensor, int] | None:
    """Which keys are no padding (..., 1, source) and how many more than its own the first query sees.

    None where the mask (..., target, source) is of another form than this; a compiler cannot ask.
    """
    target, source = allowed.shape[-2:]
    if torch.compiler.is_compiling() or target > source:
        return None
    row, places = allowed[..., -1:, :], torch.arange(source, device=allowed.device)
    for offset in dict.fromkeys((source - target, 0)):
        last = places[:target, None] + offset
        if bool((allowed == row & (places <= last)).all()):
            return row, offset
    return None


def _term(conditions: Conditions, query: Tensor, key: Tensor) -> Tensor | None:
    """What a mask adds to the scores, broadcastable to (batch, heads, components, target, source)."""
    dtype = torch.promote_types(query.dtype, torch.float32)
    term = conditions.additive(query, key.shape[-2], dtype)
    return None if term is None else _by_component(term, key.shape[1], key.shape[2])


def _rows(term: Tensor | None, rows: slice) -> Tensor | None:
    """A term for some of the queries."""
    return term if term is None or term.shape[-2] == 1 else term[..., rows, :]


def _pieces(query: Tensor, key: Tensor) -> list[slice]:
    """The queries in pieces with not too many scores each, or all at once."""
    target, each = query.shape[-2], query.shape[0] * query.shape[1] * key.shape[2] * key.shape[3]
    if exporting() or torch.compiler.is_compiling() or target * each <= 4 * _SOME_SCORES:
        return [slice(0, target)]
    size = max(16, _SOME_SCORES // each)
    return [slice(begin, begin + size) for begin in range(0, target, size)]


def _scores(query: Tensor, key: Tensor, scaling: float, additive: Tensor, term: Tensor | None) -> Tensor:
    """Scores (batch, heads, target, components, source) in float32, or float64 where queries are."""
    scores = (query * scaling) @ key.mT
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) + additive[..., None, :]
    return (scores if term is None else scores + term).transpose(2, 3)


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
