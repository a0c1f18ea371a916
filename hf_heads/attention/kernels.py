"""Softmax attention with shared keys or values, an additive term on the scores, and any widths."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Conditions(NamedTuple):
    """What holds for one call of attention, whatever the method.

    Attributes:
        mask: additive or boolean (True attends), broadcastable to (batch, heads, target, source), or None.
        causal: the module is causal; only used when there is no mask, as in transformers.
        dropout: probability of dropping an attention weight.
        implementation: `eager` returns the weights; `sdpa` takes the fastest exact way.
    """

    mask: Tensor | None = None
    causal: bool = False
    dropout: float = 0.0
    implementation: str | None = "eager"

    @property
    def eager(self) -> bool:
        """Whether the attention weights are wanted."""
        return self.implementation == "eager"

    def additive(self, query: Tensor, source: int, dtype: torch.dtype | None = None) -> Tensor | None:
        """The mask as something to add to the scores; a causal one is built where transformers leaves it to the kernel.

        Args:
            query: (..., target, width)
            source: number of keys.
            dtype: of the result where the mask is not additive already; the query's when None.
        """
        mask, dtype = self.mask, dtype or query.dtype
        if mask is None:
            if not self.causal or query.shape[-2] == 1:
                return None
            mask = lower_triangle(query, source)
        if mask.dtype == torch.bool:
            return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
        return mask

    def weights(self, weights: Tensor) -> Tensor | None:
        """Attention weights as they are returned."""
        return weights if self.eager else None

    def drop(self, weights: Tensor) -> Tensor:
        """Attention weights with dropout."""
        return nn.functional.dropout(weights, self.dropout, training=self.dropout > 0)


_PLAIN = Conditions()


def lower_triangle(query: Tensor, source: int) -> Tensor:
    """What a causal module may see without a cache, (target, source)."""
    return torch.ones(query.shape[-2], source, dtype=torch.bool, device=query.device).tril()


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float,
    bias: Tensor | None = None,
    conditions: Conditions = _PLAIN,
) -> tuple[Tensor, Tensor | None]:
    """Softmax attention with shared keys or values, an additive term on the scores, and any widths.

    Args:
        query: (batch, heads, target, width)
        key: (batch, n, source, width); n divides the heads, and neighbouring heads share.
        value: (batch, n, source, value_dim), with an n of its own.
        scaling: factor on the scores; the additive term is not scaled.
        bias: broadcastable to (batch, heads, target, source).
        conditions: mask, dropout and implementation.

    Returns:
        Context (batch, heads, target, value_dim) and the weights or None.
    """
    if not conditions.eager and fused_is_faster(query, key, value, bias):
        return _fused(query, key, value, scaling, conditions), None
    additive = conditions.additive(query, key.shape[-2])
    if not conditions.eager and pieces_are_faster(query, key):
        return _in_pieces(query, key, value, scaling, bias, additive), None
    weights = conditions.drop(_weights(query, key, scaling, bias, additive).to(value.dtype))
    return _fold(weights, value), conditions.weights(weights)


# Which exact way is the fastest was measured (`scripts/run.py ways`). It is decided by shape, device and gradient mode
# alone, never by a stopwatch at run time, so that results repeat.

_LONG = 64  # keys
_PIECE = 2**18  # scores of a piece: with their exponentials they stay in a core's cache


def fused_is_faster(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> bool:
    """Whether torch's fused attention wins: it wants equal widths and no additive term.

    Heads that share short keys are faster as one matrix product.
    """
    shared = key.shape[1] < query.shape[1] or value.shape[1] < query.shape[1]
    # A choice by length would bind an exported program to lengths on the same side as its example.
    long = exporting() or key.shape[-2] >= _LONG or query.device.type != "cpu"
    return bias is None and query.shape[-1] <= value.shape[-1] and (long or not shared)


def exporting() -> bool:
    """Whether torch.export, or the ONNX export on top of it, is tracing."""
    asked = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)  # the first one since torch 2.7
    return bool(asked())


def pieces_are_faster(query: Tensor, key: Tensor) -> bool:
    """Whether to make the scores piece by piece: on a CPU, if there are many and no backward pass wants them."""
    plain = query.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling()
    return plain and query[..., 0].numel() * key.shape[-2] > 4 * _PIECE  # fewer are not worth the gathering


def _weights(query: Tensor, key: Tensor, scaling: float, bias: Tensor | None, additive: Tensor | None) -> Tensor:
    """Attention weights (batch, heads, target, source), the softmax in float32 at least."""
    scores = _fold(query * scaling, key.mT)
    for term in (bias, additive):
        if term is not None:
            scores = scores + term if torch.is_grad_enabled() else scores.add_(term)
    return scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))


def shared_scores(query: Tensor, key: Tensor, scaling: float, bias: Tensor | None) -> Tensor:
    """Scores before mask and softmax, (batch, heads, target, source); shapes as in `attend`."""
    scores = _fold(query, (key * scaling).mT)  # the key is shared, and so the smaller one
    return scores if bias is None else scores + bias


def _in_pieces(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, bias: Tensor | None, additive: Tensor | None
) -> Tensor:
    """The same as softmax attention at once, over pieces of the batch, or of one example's targets, at a time."""
    batch, heads, target, _ = query.shape
    source = key.shape[-2]
    output = value.new_empty(batch, heads, target, value.shape[-1])
    examples = max(1, _PIECE // (heads * target * source))
    targets = target if heads * target * source <= _PIECE else max(16, _PIECE // (heads * source))
    for first in range(0, batch, examples):
        rows = slice(first, first + examples)
        for begin in range(0, target, targets):
            columns = slice(begin, begin + targets)
            weights = _weights(
                query[rows, :, columns],
                key[rows],
                scaling,
                _part(bias, rows, columns),
                _part(additive, rows, columns),
            )
            output[rows, :, columns] = _fold(weights.to(value.dtype), value[rows])
    return output


def _part(term: Tensor | None, rows: slice, columns: slice) -> Tensor | None:
    """A piece of something broadcastable to (batch, heads, target, source)."""
    if term is None:
        return None
    term = term[(None,) * (4 - term.ndim)]
    term = term if term.shape[0] == 1 else term[rows]
    return term if term.shape[2] == 1 else term[:, :, columns]


def _fold(left: Tensor, right: Tensor) -> Tensor:
    """left @ right, (batch, heads, target, a) and (batch, n, a, b); heads that share `right` become its rows."""
    if right.shape[1] == left.shape[1]:
        return left @ right
    batch, heads, target, _ = left.shape
    folded = left.reshape(batch, right.shape[1], -1, left.shape[-1]) @ right
    return folded.view(batch, heads, target, right.shape[-1])


def _fused(query: Tensor, key: Tensor, value: Tensor, scaling: float, conditions: Conditions) -> Tensor:
    """Torch's fused attention; queries and keys are padded to the values' width, since it wants equal widths."""
    target, source = query.shape[-2], key.shape[-2]
    mask, dropout = conditions.mask, conditions.dropout
    causal = conditions.causal and mask is None and target > 1
    if causal and source > target:
        key, value = key[:, :, :target], value[:, :, :target]  # an empty static cache beyond the prompt
    missing = value.shape[-1] - query.shape[-1]
    if missing > 0:
        query, key = nn.functional.pad(query, (0, missing)), nn.functional.pad(key, (0, missing))
    heads, shared = query.shape[1], max(key.shape[1], value.shape[1])
    if mask is None and not causal and shared < heads:
        # Heads that share become so many more queries; with a mask, repeating the keys costs less than the mask.
        key, value = _repeated(key, shared), _repeated(value, shared)
        folded = query.reshape(query.shape[0], shared, -1, query.shape[-1])
        context = nn.functional.scaled_dot_product_attention(folded, key, value, dropout_p=dropout, scale=scaling)
        return context.reshape(query.shape[0], heads, target, -1)
    key, value = _repeated(key, heads), _repeated(value, heads)
    return nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=causal, scale=scaling
    )


def _repeated(shared: Tensor, heads: int) -> Tensor:
    """(batch, n, source, width) for `heads` heads; one for all is not copied."""
    if shared.shape[1] == heads:
        return shared
    return (
        shared.expand(-1, heads, -1, -1)
        if shared.shape[1] == 1
        else shared.repeat_interleave(heads // shared.shape[1], 1)
    )
