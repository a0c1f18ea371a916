"""How far an optimizer's step moves scores, and the scale of shared factors at which it is as far as in the original.

A step of Adam moves every entry of a weight by about the rate, whatever the weight's size. Where a score is
sum_n q_n k_n, a step of the keys' projection then moves it in proportion to sum_n rms(q_n), one of the queries' to
sum_n rms(k_n). A decomposition leaves the scale of its factors open: it is chosen here so that these sums are what they
were, with the function unchanged.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hf_heads.core.dense import DenseAttention
from hf_heads.core.statistics import BlockStatistics, Moments

# One parameter moves the scores of all heads that share it, and its step is right for none of them. Factors that are
# stored so many times larger than they act are moved by so much less; a power of two changes no digit.
INERTIA = 8
_TINY = 1e-30


def rms(weight: Tensor, inputs: Moments, bias: Tensor | float = 0.0) -> Tensor:
    """Root mean squares of x W + b over the data, (..., n), from W (..., width, n) and b (..., n)."""
    weight = weight.double().cpu()
    bias = bias.double().cpu() if isinstance(bias, Tensor) else bias
    spread = (weight * (inputs.covariance @ weight)).sum(-2)
    return (spread + (inputs.mean @ weight + bias).square()).clamp_min(0).sqrt()


def reach(dense: DenseAttention, statistics: BlockStatistics) -> tuple[Tensor, Tensor]:
    """How far a step moves a head's scores, mean over the heads: by the queries' projection, and by the keys'.

    sum_i rms(k_hi) and sum_i rms(q_hi), in units of the rate times the block's scale.
    """
    queries = rms(dense.key, statistics.key).sum(-1).mean()
    return queries, rms(dense.query, statistics.query, dense.query_bias).sum(-1).mean()


def level(query: Tensor, core: Tensor, key: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Factors of a CP form with, for every rank, columns of U and V of one norm and mixing numbers of mean square one.

    Args:
        query, key: U and V, (width, rank).
        core: mixing, (heads, rank).
    """
    sizes = query.norm(dim=0), core.square().mean(0).sqrt(), key.norm(dim=0)
    root = (sizes[0] * sizes[1] * sizes[2]).sqrt()
    u, m, v = (size.clamp_min(_TINY) for size in sizes)
    there = root > 0  # what is zero stays as it is
    one = torch.ones_like(root)
    return (
        query * torch.where(there, root / u, one),
        core / torch.where(there, m, one),
        key * torch.where(there, root / v, one),
    )


def gauge(
    query: Tensor, core: Tensor, key: Tensor, dense: DenseAttention, statistics: BlockStatistics
) -> tuple[Tensor, Tensor, Tensor]:
    """Shared factors of the scores sum_rs (x u_r) G_h,rs (y v_s) at the scale at which steps go as far as before.

    Args:
        query, key: U (query_width, r1) and V (key_width, r2), without the block's scale.
        core: G, (heads, rank) for diagonals or (heads, r1, r2).

    Returns:
        The same, times a, 1 / (a b) and b: steps of U and V move scores as far as those of the original's queries and
        keys, see `reach`; the core takes the inverse.
    """
    double = [one.double().cpu() for one in (query, core, key)]
    if core.ndim == 2:
        u, mixing, v = level(*double)
        by_query = (mixing.abs() * rms(v, statistics.key)).sum(-1).mean()
        by_key = (mixing.abs() * rms(u, statistics.query)).sum(-1).mean()
    else:
        u, mixing, v = double
        by_query = rms(v @ mixing.mT, statistics.key).sum(-1).mean()
        by_key = rms(u @ mixing, statistics.query).sum(-1).mean()
    wanted = reach(dense, statistics)
    if min(float(by_query), float(by_key), float(wanted[0]), float(wanted[1])) <= _TINY:
        return u, mixing, v  # scores that are all zero have no scale
    a, b = by_query / wanted[0], by_key / wanted[1]
    return u * a, mixing / (a * b), v * b


def balance(by_query: Tensor, by_key: Tensor, wanted: tuple[Tensor, Tensor]) -> Tensor:
    """The c by which queries are multiplied and keys divided so that steps of both go too far by the same factor.

    For factors whose product must keep its scale: what tells heads apart has no room for the inverse (1 + e would lose
    digits to the 1).

    Args:
        by_query: sum_n rms(k_n), how far a step of the queries' projection moves scores; a number.
        by_key: the same for the keys' projection, sum_n rms(q_n).
        wanted: both of them in the original, see `reach`.
    """
    sizes = by_query, by_key, *wanted
    if min(float(size) for size in sizes) <= _TINY:
        return torch.ones((), dtype=torch.float64)
    return (by_query / wanted[0] / (by_key / wanted[1])).sqrt()
